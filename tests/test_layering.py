"""Imports run one way, stand at the top, and stay light where pictures are made."""

import ast
import sys
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "clip": {"clip"},
    "diffusion": {"clip", "diffusion"},
    "train": {"clip", "diffusion", "train"},
    "ui": {"clip", "diffusion", "ui"},
}
# What the way from a prompt to a picture is made of, besides the standard library.
LIGHT = {"torch", "safetensors", "tokenizers", "PIL", "tqdm"}
# The exceptions: what a file may import besides, inside the function that needs it.
LATE = {
    "diffusion/foreign.py": {"diffusers", "transformers"},
    "diffusion/credentials.py": {"c2pa", "cryptography"},
    "diffusion/hub.py": {"huggingface_hub"},
    "diffusion/cluster.py": {"ray"},
    "diffusion/shelf.py": {"fsspec"},
    "ui/__main__.py": {"ui.demo"},  # gradio's import takes longer than all else
}
FILES = [path.relative_to(ROOT).as_posix() for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of every import under a node; "." for a relative one."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield child.lineno, "." if child.level else child.module or ""


def package_of(module: str) -> str:
    return module.partition(".")[0] or "."


def faults(source: str, package: str, late: Set[str] = frozenset()) -> list[str]:
    """What is wrong with the imports of a file of `package`, whose functions may import what is in `late`."""
    tree = ast.parse(source)
    inside = {
        (line, module)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for line, module in imports(function)
        if {module, package_of(module)} & late
    }
    found = []
    for line, module in sorted(set(imports(tree)) - inside):
        name = package_of(module)
        if name == "." or (name in MAY_IMPORT and name not in MAY_IMPORT[package]):
            found.append(f"line {line}: {package} imports {name}")
        elif package in ("clip", "diffusion") and name not in MAY_IMPORT.keys() | LIGHT | sys.stdlib_module_names:
            found.append(f"line {line}: {name} is too heavy for {package}")
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            early = {(line, package_of(module)) for line, module in set(imports(function)) - inside}
            hidden = {line for line, name in early if name in MAY_IMPORT or name == "."}
            found += [f"line {line}: an import of the project inside a function" for line in sorted(hidden)]
    return found


@pytest.mark.parametrize("file", FILES)
def test_imports_run_one_way(file: str) -> None:
    assert not faults((ROOT / file).read_text(encoding="utf-8"), file.partition("/")[0], LATE.get(file, set()))


def test_every_package_has_files() -> None:
    assert {file.partition("/")[0] for file in FILES} == MAY_IMPORT.keys()


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("clip", "from diffusion.unet import UNet"),
        ("clip", "import diffusion"),
        ("diffusion", "import train.loop as loop"),
        ("train", "from ui import app"),
        ("ui", "if True:\n    from train.loop import fit"),
        ("diffusion", "def f():\n    from clip.text import TextEncoder"),
        ("train", "class A:\n    async def f(self):\n        import diffusion.unet"),
        ("diffusion", "from . import unet"),
        ("diffusion", "import numpy as np"),
        ("clip", "def f():\n    from transformers import CLIPModel"),
    ],
)
def test_faults_are_seen(package: str, source: str) -> None:
    assert len(faults(source, package)) == 1


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("clip", "import torch.nn.functional as F\nfrom PIL import Image\nimport json"),
        ("train", "import accelerate\nfrom clip.model import CLIP"),
        ("ui", "import gradio\nfrom diffusion.pipeline import Pipeline"),
    ],
)
def test_what_is_allowed_passes(package: str, source: str) -> None:
    assert not faults(source, package)


def test_late_imports_are_inside_functions() -> None:
    assert not faults("def f():\n    import diffusers", "diffusion", {"diffusers"})
    assert len(faults("import diffusers", "diffusion", {"diffusers"})) == 1
    assert not faults("def f():\n    from ui.demo import mount", "ui", {"ui.demo"})
    assert len(faults("def f():\n    from ui.words import say", "ui", {"ui.demo"})) == 1

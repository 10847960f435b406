"""Checkpoints that count only when they verify.

A checkpoint is a folder `step-00000200` of safetensors and one `state.json`. It is written aside, flushed, given a
manifest of SHA-256 sums and renamed, so a crash at any moment leaves the earlier ones whole. Loading walks back to the
newest that verifies. Random state is not stored: every draw is a function of (seed, global sample index).
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from clip.durable import flush
from diffusion.files import sha256

MANIFEST = "manifest.json"
Tensors = dict[str, dict[str, Tensor]]  # file stem -> its tensors


def save(folder: Path, step: int, tensors: Tensors, state: dict[str, Any], keep: int = 2) -> Path:
    """Writes `folder/step-XXXXXXXX` durably, then removes all but the newest `keep` that verify."""
    folder.mkdir(parents=True, exist_ok=True)
    final, aside = folder / f"step-{step:08d}", folder / f".step-{step:08d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for stem, group in tensors.items():
        save_file({k: v.detach().cpu().contiguous() for k, v in group.items()}, aside / f"{stem}.safetensors")
    (aside / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
    sums = {path.name: sha256(path) for path in sorted(aside.iterdir())}
    (aside / MANIFEST).write_text(json.dumps(sums, indent=1))
    for path in [*aside.iterdir(), aside]:
        flush(path)
    shutil.rmtree(final, ignore_errors=True)  # the same step, from a run whose copy did not verify
    os.replace(aside, final)
    flush(folder)
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old)
    return final


def newest(folder: Path) -> tuple[Tensors, dict[str, Any]] | None:
    """The tensors and state of the newest checkpoint that verifies, or None."""
    for path in _newest_first(folder):
        tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
        return tensors, json.loads((path / "state.json").read_text())
    return None


def _newest_first(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("step-*"), reverse=True) if _verifies(path)]


def _verifies(path: Path) -> bool:
    try:
        sums = json.loads((path / MANIFEST).read_text())
        return all(sha256(path / name) == expected for name, expected in sums.items())
    except (OSError, ValueError):
        return False

"""Models of the Hugging Face Hub by their names: from the local cache, or fetched where that is asked for."""

import os
import re
from pathlib import Path

NAME = re.compile(r"[\w.-]+/[\w.-]+")  # an organisation and a model


def is_name(model: str) -> bool:
    return bool(NAME.fullmatch(model)) and ".." not in model


def cache() -> Path:
    """Where Hugging Face's libraries keep what they fetched."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or home) / "hub").expanduser()


def cached(model: str, revision: str = "main") -> Path | None:
    """The folder of a model in the cache, or None where it is not there."""
    repository = cache() / f"models--{model.replace('/', '--')}"
    reference = repository / "refs" / revision
    if not reference.is_file():
        return None
    folder = repository / "snapshots" / reference.read_text().strip()
    return folder if folder.is_dir() else None


def name_of(folder: Path) -> str:
    """The model's name on the Hub, where its folder lies in a cache; else the folder's own."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def download(model: str) -> Path:
    """Fetches a model into the cache: configurations, vocabularies, weights as safetensors, each of them once."""
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f"To fetch {model}, huggingface_hub is needed: pip install 'oboro[interop]'.") from None
    try:
        names = set(huggingface_hub.list_repo_files(model))
        wanted = [name for name in sorted(names) if _is_wanted(name, names)]
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=wanted))
    except Exception as error:  # its own, the system's, and those of whatever it fetches by
        said = " ".join(str(error).split())
        raise ValueError(f"{model} cannot be fetched from the Hugging Face Hub: {said}") from None


def _is_wanted(name: str, names: set[str]) -> bool:
    if name.endswith(".safetensors"):
        whole = name.replace(".fp16", "")  # a variant is fetched where there is nothing else
        return "/" in name and "non_ema" not in name and (whole == name or whole not in names)
    return name.endswith((".json", ".txt", ".model"))

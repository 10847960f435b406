"""Emoji art and names: npm packages, pinned by version and SHA-512, read without being extracted."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Package:
    """An npm package, pinned: `integrity` is the base64 SHA-512 of the tarball that `npm pack` leaves."""

    name: str
    version: str
    integrity: str
    licence: str
    attribution: str

    @property
    def spec(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def file(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


NAMES = "names"  # the package of labels and tags; the others are named by the style that they draw
PACKAGES = {
    NAMES: Package(
        "emojibase-data", "17.0.0",
        "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
        "MIT", "Emojibase, Miles Johnson",
    ),
    "3d": Package(
        "@lobehub/fluent-emoji-3d", "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "MIT", "Fluent Emoji, Microsoft Corporation; packaged by LobeHub",
    ),
    "flat": Package(
        "@iconify-json/fluent-emoji-flat", "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT", "Fluent Emoji, Microsoft Corporation; packaged by Iconify",
    ),
    "noto": Package(
        "@iconify-json/noto", "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0", "Noto Emoji, Google Inc; packaged by Iconify",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji", "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0", "Twemoji, Twitter and contributors; packaged by Iconify",
    ),
}  # fmt: skip
MEMBER_LIMIT = 64 * 2**20  # bytes; the largest member read, noto's icons.json, has 25 MB


def obtain(package: Package, folder: Path, fetched: Path | None) -> Path:
    """The package's tarball, checked: out of `fetched` if given, else of `folder`, where npm puts it.

    Raises ValueError where it cannot be had, or is not the one that is pinned.
    """
    if fetched is not None:
        path = fetched / package.file
        if not path.is_file():
            raise ValueError(f"{fetched} has no {package.file}: run `npm pack {package.spec}` there")
        check(path, package)
        return path
    path = folder / package.file
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            pack(package, Path(aside))
            check(Path(aside) / package.file, package)
            os.replace(Path(aside) / package.file, path)
    check(path, package)
    return path


def pack(package: Package, folder: Path) -> None:
    npm, advice = shutil.which("npm"), "name a folder that already holds the packages (--fetched)"
    if npm is None:
        raise ValueError(f"npm was not found and cannot fetch {package.spec}: install Node.js, or {advice}")
    command = [npm, "pack", package.spec, "--ignore-scripts", "--pack-destination", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode != 0 or not (folder / package.file).is_file():
        errors = [line for line in result.stderr.splitlines() if line.startswith("npm error")]
        cause = errors[0].removeprefix("npm error").strip() if errors else f"exit code {result.returncode}"
        raise ValueError(f"npm could not fetch {package.spec} ({cause}): check the network or {advice}")


def check(path: Path, package: Package) -> None:
    with path.open("rb") as file:
        found = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if found != package.integrity:
        raise ValueError(f"{path} is not {package.spec} as pinned (its SHA-512 differs): fetch it anew")


def members(tarball: Path, wanted: set[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the package's plain files, in its order; all, or those `wanted`."""
    with tarfile.open(tarball, "r|gz") as archive:
        for member in archive:
            name = member.name.removeprefix("package/")
            if not member.isfile() or (wanted is not None and name not in wanted):
                continue
            if member.size > MEMBER_LIMIT:
                raise ValueError(f"{name} in {tarball} has {member.size} bytes, over {MEMBER_LIMIT}")
            content = archive.extractfile(member)
            assert content is not None  # a plain file has content
            yield name, content.read()


def read_json(tarball: Path, *names: str) -> list[Any]:
    found = dict(members(tarball, set(names)))
    for name in names:
        if name not in found:
            raise ValueError(f"{tarball} holds no {name}")
    return [json.loads(found[name]) for name in names]

"""A recipe: one TOML file that holds everything a training needs to know, data to defaults.

Every stage of a run reads the same recipe and the same run folder:

    data/           pictures as they were rendered
    autoencoder/    train.autoencoder: checkpoints, loss curve, sample grids    => model/vae
    contrastive/    train.contrastive: the same of CLIP, whole in clip/         => model/tokenizer, model/text_encoder
    denoiser/       train.denoiser: the same of the U-Net                       => model/unet, model/scheduler: complete
    language/       train.language: of a language model of the captions, apart  => prompts/
"""

import argparse
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from train.loop import LoopConfig

RECIPES = Path(__file__).parent / "recipes"
Table = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """The tables of the TOML file, by stage; each stage turns its own into configurations."""

    name: str
    size: int  # pixels a side
    data: Table
    tokenizer: Table
    # A recipe may leave out stages: CLIP alone ranks pictures and makes none.
    autoencoder: Table = field(default_factory=dict)
    contrastive: Table = field(default_factory=dict)
    denoiser: Table = field(default_factory=dict)
    defaults: Table = field(default_factory=dict)  # generation_config.json: steps, sampler, schedule, guidance
    language: Table = field(default_factory=dict)  # of captions: train.language
    judge: Table = field(default_factory=dict)  # of pictures: train.evaluate

    @classmethod
    def load(cls, name: str) -> Self:
        """Reads a recipe by the name of a shipped one or the path of a TOML file."""
        path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
        if not path.is_file():
            shipped = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
            raise ValueError(f"No recipe {name!r}: give the path of a .toml file or one of {shipped}.")
        try:
            tables = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not valid TOML: {error}.") from None
        return build(cls, tables, str(path))

    def training(self, stage: str, steps: int | None = None, precision: str | None = None) -> LoopConfig:
        """A stage's `[stage.training]` table, with what the command line asked for in place of the recipe's."""
        asked = {"steps": steps, "precision": precision}
        table = getattr(self, stage)["training"] | {k: v for k, v in asked.items() if v is not None}
        return build(LoopConfig, table, f"[{stage}.training]")


def build(kind: type, table: Table, where: str) -> Any:
    """`kind(**table)` for a dataclass, with one clear sentence for a name that it has not or that is missing."""
    names = {f.name for f in fields(kind)}
    if unknown := sorted(set(table) - names):
        raise ValueError(f"{where} has no setting {unknown[0]!r}: it takes {', '.join(sorted(names))}.")
    try:
        return kind(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
        )
    except TypeError as error:
        raise ValueError(f"{where}: {error}.") from None


def arguments(description: str, examples: str) -> argparse.ArgumentParser:
    """The options that every stage shares."""
    parser = argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a shipped recipe's name (emoji-64) or the path of a TOML file")
    parser.add_argument(
        "--out", type=Path, help="the run folder (default: runs/NAME); a run found there is continued"
    )
    parser.add_argument(
        "--folder", type=Path, help="train on this folder of images with captions, not on the recipe's data"
    )
    parser.add_argument(
        "--fetched", type=Path, help="a folder of already fetched .tgz packages for the emoji data"
    )
    parser.add_argument("--steps", type=int, help="training steps, in place of the recipe's")
    parser.add_argument("--precision", choices=("auto", "no", "bf16"), help="in place of the recipe's")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    return parser

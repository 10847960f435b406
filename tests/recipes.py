"""A tiny recipe of six pictures: what the tests of the trainers share."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue")
TRAINING = "steps = 3\nbatch = 4\nwarmup = 1\ncheckpoint_every = 2\nsample_every = 3\nlog_every = 1"
AUTOENCODER = """
kl_weight = 1e-3
[autoencoder.model]
block_out_channels = [8, 16]
layers_per_block = 1
latent_channels = 4
norm_num_groups = 4
mid_block_add_attention = false
scaling_factor = 1.0
[autoencoder.training]
{training}
"""
PIXELS = 'kind = "none"'
RECIPE = """
name = "tiny"
size = 16
[data]
source = "folder"
path = "{pictures}"
[tokenizer]
vocab_size = 520
length = 16
[autoencoder]
{autoencoder}
[contrastive]
[contrastive.text]
width = 32
layers = 1
heads = 2
mlp_width = 64
activation = "quick_gelu"
projection = 16
[contrastive.image]
patch_size = 8
width = 32
layers = 1
heads = 2
mlp_width = 64
activation = "quick_gelu"
projection = 16
[contrastive.training]
{training}
[denoiser]
variations = 2
caption_dropout = 0.2
[denoiser.model]
block_out_channels = [16, 32]
down_block_types = ["DownBlock2D", "CrossAttnDownBlock2D"]
up_block_types = ["CrossAttnUpBlock2D", "UpBlock2D"]
layers_per_block = 1
attention_head_dim = 2
norm_num_groups = 8
[denoiser.noise]
scheduler = "DDIMScheduler"
prediction_type = "{prediction}"
[denoiser.times]
mean = 0.0
std = 1.0
[denoiser.training]
{training}
[language]
vocab_size = 290
[language.model]
width = 16
layers = 1
heads = 2
mlp_width = 32
length = 32
[language.training]
{training}
[defaults]
steps = 2
sampler = "ddim"
guidance = 2.0
"""


def write_recipe(
    folder: Path, training: str = TRAINING, autoencoder: str = AUTOENCODER, prediction: str = "v_prediction"
) -> Path:
    """Writes tiny.toml and its pictures: circles and squares in three colours, 16 pixels a side."""
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    rows = []
    for i, colour in enumerate(COLOURS * 2):
        image = Image.new("RGB", (16, 16), "white")
        draw = ImageDraw.Draw(image)
        (draw.ellipse if i < 3 else draw.rectangle)((4, 4, 12, 12), fill=colour)
        image.save(pictures / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"a {colour} {'circle' if i < 3 else 'square'}"})
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "tiny.toml"
    path.write_text(
        RECIPE.format(
            pictures=pictures.as_posix(),
            autoencoder=autoencoder.format(training=training),
            prediction=prediction,
            training=training,
        )
    )
    return path


def trace(stage: Path) -> list[dict[str, Any]]:
    """The lines of a stage's metrics, without how long they took: the same for the same training."""
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds_a_step"} for row in rows]

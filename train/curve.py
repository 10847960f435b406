"""The loss curve and grids of pictures as PNG, with nothing but Pillow."""

import json
import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

SIZE, MARGIN = (960, 480), 48


def draw_curve(metrics: Path, png: Path) -> None:
    """Draws `loss` of a metrics.jsonl against the step, the loss on a logarithmic axis, over its running mean."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    points = [
        (row["step"], row["loss"]) for row in rows if row.get("loss", 0) > 0 and math.isfinite(row["loss"])
    ]
    if len(points) < 2:
        return
    low, high = (math.log10(f(y for _, y in points)) for f in (min, max))
    (width, height), last = SIZE, points[-1][0]

    def place(step: float, loss: float) -> tuple[float, float]:
        x = MARGIN + (width - 2 * MARGIN) * step / last
        y = MARGIN + (height - 2 * MARGIN) * (high - math.log10(loss)) / max(high - low, 1e-9)
        return x, y

    smooth, mean = [], points[0][1]
    for step, loss in points:
        mean += 0.1 * (loss - mean)
        smooth.append((step, mean))
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    for i in range(5):
        loss = 10 ** (low + (high - low) * i / 4)
        draw.line([place(0, loss), place(last, loss)], fill="#e4e4ea")
        draw.text((4, place(0, loss)[1] - 6), f"{loss:.3g}", fill="#60606c")
        draw.text(
            (place(last * i / 4, 10**low)[0] - 10, height - MARGIN + 10),
            str(round(last * i / 4)),
            fill="#60606c",
        )
    draw.line([place(*p) for p in points], fill="#c9d3f2")
    draw.line([place(*p) for p in smooth], fill="#3355cc", width=2)
    image.save(png)


def grid(images: Tensor, columns: int, png: Path) -> None:
    """Saves images [N, 3, H, W] in [-1, 1] as one PNG, row by row."""
    n, _, h, w = images.shape
    rows = -(-n // columns)
    sheet = torch.ones(3, rows * (h + 2), columns * (w + 2))
    for i, image in enumerate(images.float().cpu()):
        y, x = divmod(i, columns)
        sheet[:, y * (h + 2) : y * (h + 2) + h, x * (w + 2) : x * (w + 2) + w] = image
    pixels = ((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous()
    Image.frombytes("RGB", (pixels.shape[1], pixels.shape[0]), bytes(pixels.flatten().tolist())).save(png)

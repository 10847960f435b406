"""How far two pictures are apart, and what is still rounding."""

import math
from dataclasses import dataclass

from PIL import Image, ImageChops

PSNR, CLOSE = 50.0, 0.999  # dB; the share of values that differ by 1 of 255 at most


@dataclass(frozen=True)
class Difference:
    """Between the 8-bit values of two pictures."""

    psnr: float  # dB, infinite for equal ones
    largest: int  # of 255
    close: float  # the share that differs by 1 at most

    @property
    def figures(self) -> str:
        """Of a table's row."""
        return f"{self.psnr:.1f} | {self.largest} | {self.close:.3%}"

    @property
    def within_rounding(self) -> bool:
        return self.psnr >= PSNR and self.close >= CLOSE


def difference(a: Image.Image, b: Image.Image) -> Difference:
    values = ImageChops.difference(a, b).tobytes()
    mean_square = sum(value**2 for value in values) / len(values)
    psnr = 10 * math.log10(255**2 / mean_square) if mean_square else math.inf
    return Difference(psnr, max(values), sum(value <= 1 for value in values) / len(values))

"""How much may wait, and how long it takes until there is room again."""

import math
import time

DECAY = 0.99  # of what the pace was measured on, an evaluation: the last hundred count
GUESS = 1e-5  # seconds for a pixel's evaluation, until some were measured


class Overloaded(Exception):
    """Too much is waiting; in `retry_after` seconds, at the measured pace, there should be room."""

    def __init__(self, seconds: float) -> None:
        self.retry_after = max(math.ceil(seconds), 1)
        super().__init__(f"Too many pictures are waiting; try again in {self.retry_after} s.")


class TooMuch(ValueError):
    """What is asked for at once is more than may ever wait."""


class Pace:
    """The measured seconds that the evaluation of a pixel takes."""

    def __init__(self) -> None:
        self.pixels, self.seconds = 1.0, GUESS
        self.last = 0.0

    def evaluated(self, pixels: int, started: float) -> None:
        """An evaluation has just been made, for a job that was leased at the time `started`."""
        now = time.time()
        self.seconds = DECAY * self.seconds + max(now - max(self.last, started), 0)
        self.pixels = DECAY * self.pixels + pixels
        self.last = now

    def time(self, cost: float) -> float:
        """Seconds for so many pixels times evaluations."""
        return cost * self.seconds / self.pixels

"""What makes a comparison of times trustworthy: pairs, their median ratio and its interval, and what they depend on."""

import os
import platform
import random
import resource
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

RESAMPLES = 10_000


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The median, inside the percentile bootstrap's 95 % interval (Efron 1979)."""
    draws = random.Random(0)
    medians = sorted(statistics.median(draws.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return medians[RESAMPLES // 40], statistics.median(ratios), medians[-RESAMPLES // 40]


def machine() -> str:
    """What the figures depend on, and no name that belongs to one machine."""
    libraries = [f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers")]
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    threads = f"up to {torch.get_num_threads()} threads on {os.cpu_count()} cores of {cpu}"
    return f"Python {platform.python_version()}, {', '.join(libraries)}; {threads}"


def peak_memory() -> float:
    """The most memory that this process has had, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

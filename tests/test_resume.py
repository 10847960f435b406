"""A training that is stopped and killed again and again ends as if it had never been."""

import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from recipes import trace, write_recipe

from train import checkpoints

ROOT = Path(__file__).parent.parent
STAGES = ("autoencoder", "contrastive", "denoiser")
STEPS = 200  # of each stage
# Checkpoints and lines of the metrics fall on different steps, so that a restart finds a line half made.
TRAINING = f"""steps = {STEPS}
batch = 4
warmup = 10
checkpoint_every = 20
log_every = 3
sample_every = 100"""
LINES = 3 * math.ceil(STEPS / 3)  # of metrics, of the three stages


def start(recipe: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "train", str(recipe), "--out", str(out), "--precision", "no"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # two of them share a small machine
    return subprocess.Popen(command, cwd=ROOT, env=one_thread, stderr=subprocess.PIPE, text=True)


def lines(out: Path) -> int:
    """How far a run has come, in lines of its metrics: LINES at the end."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*/metrics.jsonl"))


def interrupt(recipe: Path, out: Path, after: float, number: signal.Signals) -> tuple[int, str]:
    """Starts the run, or goes on with it, and signals it at a random moment past `after` lines."""
    process = start(recipe, out)
    while process.poll() is None and lines(out) < after:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.05))  # into a step, or into the writing of a checkpoint
    process.send_signal(number)
    said = process.communicate()[1]
    return process.returncode, said


@pytest.mark.slow
def test_a_run_that_is_interrupted_ends_as_one_that_is_not(tmp_path: Path) -> None:
    recipe, calm, hit = write_recipe(tmp_path, TRAINING), tmp_path / "calm", tmp_path / "hit"
    undisturbed = start(recipe, calm)

    status, said = interrupt(recipe, hit, random.uniform(5, 20), signal.SIGTERM)
    assert status == 130, said
    stopped = re.search(rf"Stopped at step (\d+) of {STEPS}; the same command goes on from there", said)
    assert stopped, said
    found = checkpoints.newest(hit / "autoencoder/checkpoints")
    assert found
    assert found[1]["step"] == int(stopped[1])

    for share in (0.3, 0.6, 0.8):
        status, said = interrupt(recipe, hit, (share + random.uniform(0, 0.15)) * LINES, signal.SIGKILL)
        assert status == -signal.SIGKILL, said
    for process in (start(recipe, hit), undisturbed):
        said = process.communicate()[1]
        assert process.returncode == 0, said

    for stage in STAGES:
        assert trace(hit / stage) == trace(calm / stage)
        assert trace(hit / stage)[-1]["step"] == STEPS
        ours, theirs = (checkpoints.newest(run / stage / "checkpoints") for run in (hit, calm))
        assert ours
        assert theirs
        assert ours[1] == theirs[1]
        for group, tensors in theirs[0].items():
            assert tensors.keys() == ours[0][group].keys()
            assert all(torch.equal(tensor, ours[0][group][name]) for name, tensor in tensors.items())
    for theirs in (path for path in calm.glob("model/**/*") if path.is_file()):
        assert (hit / theirs.relative_to(calm)).read_bytes() == theirs.read_bytes(), theirs

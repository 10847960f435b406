"""A large picture takes little more memory than its largest activation: wide maps are never whole more than once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import save_tiny

from diffusion.autoencoder import Autoencoder, AutoencoderConfig

# In a process of its own, for a peak is of all that a process ever did. A small picture comes first: by then the
# weights are there, and what PyTorch sets up at first use.
MEASURED = """
import sys
from benchmarks.activation import bound
from benchmarks.measure import peak_memory
from diffusion.checkpoint import load_model
from diffusion.pipeline import Pipeline
from diffusion.request import Request

pipeline = Pipeline(load_model(sys.argv[1]))
peaks = []
for side in (64, 512):
    list(pipeline.generate([Request("a red apple", width=side, height=side, steps=1)]))
    peaks.append(peak_memory())
weights, activation = bound(load_model(sys.argv[1]), (1, 4, 64, 64))
print(peaks[1] - peaks[0], activation / 2**20)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage to ask for the peak")
def test_the_peak_is_within_a_tenth_of_the_largest_activation(tmp_path: Path) -> None:
    config = AutoencoderConfig(
        block_out_channels=(64,) * 4, layers_per_block=1, norm_num_groups=8, mid_block_add_attention=False
    )
    model = save_tiny(tmp_path / "model", Autoencoder(config))

    command = [sys.executable, "-c", MEASURED, str(model)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=os.environ, check=True, stdout=subprocess.PIPE, text=True)

    taken, activation = map(float, done.stdout.split())  # MiB
    assert activation > 200
    assert taken <= 1.1 * activation

"""A thousand damaged files: each is refused in one sentence, soon, in little memory, and nothing else happens."""

import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.deeds import HEADERS, PLACES, others
from clip.folder import Undrawn
from clip.text import TextConfig, TextEncoder
from clip.tokenizer import Tokenizer
from diffusion.autoencoder import Autoencoder, AutoencoderConfig
from diffusion.checkpoint import Defaults, load_model, save_model
from diffusion.noise import Noise
from diffusion.schedulers import NoiseConfig
from diffusion.unet import UNet, UNetConfig

ROOT = Path(__file__).parent.parent
MEBIBYTES = 256


@pytest.fixture(scope="module")
def speck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As small as a model with all its parts can be: it is loaded a thousand times."""
    folder = tmp_path_factory.mktemp("models") / "speck"
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a red apple"] * 2, vocab_size=520, length=8)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, length=8, width=8, layers=1, heads=1, mlp_width=8, eos_token_id=tokenizer.end
    )
    unet = UNetConfig(
        sample_size=8, block_out_channels=(8,), down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",), layers_per_block=1, attention_head_dim=1, cross_attention_dim=8,
        norm_num_groups=2,
    )  # fmt: skip
    autoencoder = AutoencoderConfig(block_out_channels=(8,), layers_per_block=1, norm_num_groups=2, sample_size=8)
    networks = TextEncoder(text).half(), UNet(unet).half(), Autoencoder(autoencoder).half()
    defaults = Defaults(steps=4, sampler="euler", guidance=3.0, size=8)
    save_model(folder, (tokenizer,), networks[:1], *networks[1:], Noise(NoiseConfig()), defaults)
    return folder


def test_a_thousand_damaged_files(speck: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.hostile", "--model", str(speck), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == 1000, done.stderr
    assert [outcome for outcome in outcomes if outcome["fault"]] == []
    assert max(outcome["mebibytes"] for outcome in outcomes) < MEBIBYTES
    kinds = Counter(outcome["kind"] for outcome in outcomes)
    assert {f"weights: {kind}" for kind in HEADERS} < kinds.keys()
    assert {f"another file: {kind}" for kind in others(tmp_path)} < kinds.keys()
    assert {f"no file: {kind}" for kind in PLACES} < kinds.keys()
    assert sum(count for kind, count in kinds.items() if kind.startswith("accident")) > 80
    assert len({outcome["file"] for outcome in outcomes}) > 12
    load_model(speck)  # which was left alone


def test_the_watch_sees(tmp_path: Path) -> None:
    """What it would report: the thousand prove nothing otherwise."""
    (tmp_path / "module_for_the_watch.py").write_text("x = 1\n")
    code = (
        "import sys, os, pickle, socket, subprocess; from benchmarks.hostile import Watch; w = Watch()\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "data = pickle.dumps(os.getcwd); s = socket.socket()\n"
        "for deed in (lambda: exec('1'), lambda: pickle.loads(data), lambda: os.system('true'),\n"
        "             lambda: subprocess.run(['true']), lambda: s.bind(('127.0.0.1', 0)),\n"
        f"             lambda: open({str(tmp_path / 'written')!r}, 'a'), lambda: __import__('module_for_the_watch')):\n"
        "    w.seen.clear(); w.on = True; deed(); w.on = False; print(w.seen[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = [line.split(" ")[0] for line in done.stdout.splitlines()]
    assert found == ["compile", "pickle.find_class", "os.system", "subprocess.Popen", "socket.bind", "open", "import"]


def test_a_payload_would_be_run(tmp_path: Path) -> None:
    pickle.loads(others(tmp_path / "run")["pickle 4"])
    assert (tmp_path / "run").exists()


def test_a_network_of_more_layers_than_its_file() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="more layers than there are weights"), Undrawn(3):
        torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(10**9)))


def test_links_within_the_hub_s_cache(speck: Path, tmp_path: Path) -> None:
    """It keeps the files beside its folders of a model; a link anywhere else is one out of the folder."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in speck.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(speck)
        link.parent.mkdir(parents=True, exist_ok=True)
        (blobs / str(number)).write_bytes(path.read_bytes())
        link.symlink_to(blobs / str(number))
    load_model(snapshot)
    (snapshot / "model_index.json").unlink()
    (snapshot / "model_index.json").symlink_to(speck / "model_index.json")
    with pytest.raises(ValueError, match=r"model_index.json is a link out of the model's folder; .*\.$"):
        load_model(snapshot)

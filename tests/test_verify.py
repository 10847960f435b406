"""Pictures that are made again, and what is said of them."""

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_credentials import Credentials, credentials  # noqa: F401 (a fixture)

from diffusion.sample import main as sample
from diffusion.texts import FORMATS, encode_picture, read_texts
from diffusion.verify import main

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def picture(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, *options: str) -> Path:
        path = tmp_path / name
        assert sample(["a red apple", "--model", str(tiny_model), "--out", str(path), *options]) == 0
        return path

    return make


def verify(capfd: pytest.CaptureFixture, *options: Any) -> tuple[int, str, str]:
    capfd.readouterr()
    status = main([str(option) for option in options])
    return status, *capfd.readouterr()


def rewrite(path: Path, change: Callable[[Image.Image], Image.Image] = lambda image: image, **record: Any) -> Path:
    """The file again, with other pixels, or with another record."""
    texts = read_texts(path.read_bytes())
    texts["oboro"] = json.dumps(json.loads(texts["oboro"]) | record)
    with Image.open(path) as image:
        path.write_bytes(encode_picture(change(image), texts, FORMATS[path.suffix]))
    return path


def test_identical(picture: Callable[..., Path], tiny_model: Path, capfd: pytest.CaptureFixture) -> None:
    options = ["--negative", "a star", "--steps", "3", "--sampler", "euler_ancestral", "--size", "16x32", "--seed", "7"]
    paths = [picture("a.png", *options), picture("b.jpg"), picture("c.webp"), picture("d.png", "--dtype", "bfloat16")]
    status, out, err = verify(capfd, *paths, "--model", tiny_model)
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"{path}: identical." for path in paths]


def test_as_many_threads_as_then(
    picture: Callable[..., Path], tiny_model: Path, capfd: pytest.CaptureFixture
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        path = picture("a.png", "--size", "128", "--steps", "2")
        assert json.loads(read_texts(path.read_bytes())["oboro"])["threads"] == 2
        torch.set_num_threads(1)
        assert verify(capfd, path, "--model", tiny_model)[:2] == (0, f"{path}: identical.\n")
        assert torch.get_num_threads() == 1
        _, out, _ = verify(capfd, rewrite(path, threads="many"), "--model", tiny_model)
        assert "threads was many and is 1 here" in out
    finally:
        torch.set_num_threads(before)


def brighter(by: int) -> Callable[[Image.Image], Image.Image]:
    """One number of one pixel, by so much."""

    def change(image: Image.Image) -> Image.Image:
        red, *rest = image.getpixel((3, 5))
        image.putpixel((3, 5), (red + by if red < 128 else red - by, *rest))
        return image

    return change


def test_changed_pixels(picture: Callable[..., Path], tiny_model: Path, capfd: pytest.CaptureFixture) -> None:
    status, out, _ = verify(capfd, rewrite(picture("a.png"), brighter(1)), "--model", tiny_model)
    assert (status, "within tolerance (largest difference 1 of 255, PSNR 7" in out) == (0, True)
    path = rewrite(picture("a.png"), brighter(100))
    status, out, _ = verify(capfd, path, "--model", tiny_model)
    assert status == 1
    assert "differs (largest difference 100 of 255, PSNR 3" in out
    assert out.endswith("dB), and nothing recorded explains it.\n")
    status, out, _ = verify(capfd, path, "--model", tiny_model, "--json")
    said = json.loads(out)
    assert (said["path"], said["verdict"], said["largest"], said["because"]) == (str(path), "differs", 100, [])
    status, out, _ = verify(capfd, rewrite(path, lambda image: image.resize((32, 16))), "--model", tiny_model)
    assert "differs because it is 32x16 pixels large and its request makes 16x16" in out


def test_another_model(
    picture: Callable[..., Path], tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    path, other = picture("a.png"), Path(shutil.copytree(tiny_model, tmp_path / "other"))
    weights = load_file(other / UNET)
    save_file({name: weight * 1.1 for name, weight in weights.items()}, other / UNET, {"format": "pt"})
    (other / "SHA256SUMS").unlink(missing_ok=True)
    record = json.loads(read_texts(path.read_bytes())["oboro"])["model"]
    was = record["weights"][UNET][:10]
    status, out, _ = verify(capfd, path, "--model", other)
    assert status == 1
    assert f" because {UNET} was {was} and is " in out
    assert out.count(";") == 0  # and for no other reason
    # Where no model is given, the one that is recorded is looked for.
    status, out, err = verify(capfd, path)
    assert (status, out) == (2, "")
    assert "made with the model 'tiny' (" in err
    assert f"{UNET} {was}" in err
    assert err.endswith("which is not here; give its path with --model.\n")


def test_what_a_model_was_told(
    picture: Callable[..., Path], tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    vae = Path(shutil.copytree(tiny_model / "vae", tmp_path / "vae"))
    weights = load_file(vae / "diffusion_pytorch_model.safetensors")
    weights["decoder.conv_out.bias"] += 1
    save_file(weights, vae / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    path = picture("a.png", "--prediction-type", "epsilon", "--vae", str(vae))
    status, out, _ = verify(capfd, path, "--model", tiny_model, "--vae", vae)
    assert (status, out) == (0, f"{path}: identical.\n")
    status, out, _ = verify(capfd, path, "--model", tiny_model)
    assert (status, " because vae/diffusion_pytorch_model.safetensors was " in out) == (1, True)


def test_another_lora(
    picture: Callable[..., Path], tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        sides = {f"{layer}.lora_A.weight": torch.randn(2, 64), f"{layer}.lora_B.weight": torch.randn(64, 2)}
        save_file(sides, tmp_path / folder / "ink.safetensors")
    path = picture("a.png", "--lora", "ink:0.8", "--loras", str(tmp_path / "one"))
    status, out, _ = verify(capfd, path, "--model", tiny_model, "--loras", tmp_path / "one")
    assert (status, out) == (0, f"{path}: identical.\n")
    status, out, _ = verify(capfd, path, "--model", tiny_model, "--loras", tmp_path / "other")
    assert (status, " because LoRA ink was " in out) == (1, True)
    status, _, err = verify(capfd, path, "--model", tiny_model)
    assert (status, "no folder of LoRAs is given" in err) == (2, True)


def test_other_circumstances(picture: Callable[..., Path], tiny_model: Path, capfd: pytest.CaptureFixture) -> None:
    versions = {"oboro": "0.0.1", "torch": torch.__version__}
    path = rewrite(picture("a.png"), brighter(100), versions=versions, device="NVIDIA H100", dtype="float16")
    status, out, _ = verify(capfd, path, "--model", tiny_model, "--device", "cpu")
    assert status == 1
    assert "oboro was 0.0.1 and is " in out
    assert "; device was NVIDIA H100 and is cpu here." in out
    assert "torch was" not in out
    assert "dtype was" not in out  # it is made in what is recorded
    status, out, _ = verify(capfd, rewrite(picture("a.png"), versions=versions), "--model", tiny_model)
    assert status == 0
    assert ": identical, though oboro was 0.0.1 and is " in out


def test_pictures_of_other_programs(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    text = "a red apple\nSteps: 3, Sampler: Euler, CFG scale: 3, Seed: 1, Size: 16x16, Model hash: 0123456789, Model: x"
    path = tmp_path / "theirs.png"
    path.write_bytes(encode_picture(Image.new("RGB", (16, 16)), {"parameters": text}))
    status, out, _ = verify(capfd, path, "--model", tiny_model)
    assert (status, "differs (" in out, "it has no oboro chunk" in out) == (1, True, True)
    status, _, err = verify(capfd, path)
    assert status == 2
    assert "made with the model 'x', which is not here" in err


def test_mistakes_are_told_and_the_rest_is_done(
    picture: Callable[..., Path], tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "plain.png")
    good, cut = picture("good.png"), picture("cut.jpg")
    cut.write_bytes(cut.read_bytes()[:-200])
    broken = [
        (tmp_path / "notes.png", "not a picture that can be read"),
        (tmp_path / "plain.png", "does not say how it was made"),
        (tmp_path / "nowhere.png", "No such file"),
        (cut, "no readable PNG, JPEG or WebP image"),
        (rewrite(picture("a.png"), request={"prompt": "a", "hat": 1}), "no field 'hat'"),
        (rewrite(picture("b.png"), request={"prompt": "a", "steps": -1}), "steps is -1"),
        (rewrite(picture("c.png"), model={"name": "x"}), "oboro chunk is broken"),
        (rewrite(picture("d.png"), dtype="float8"), "'float8'"),
    ]
    status, out, err = verify(capfd, *(path for path, _ in broken), good, "--model", tiny_model)
    assert status == 2
    assert out == f"{good}: identical.\n"
    for line, (path, said) in zip(err.splitlines(), broken, strict=True):
        assert line.startswith(f"python -m diffusion.verify: {path}: ")
        assert said in line
        assert line.endswith(".")


def test_signatures(
    picture: Callable[..., Path], tiny_model: Path, credentials: Credentials, capfd: pytest.CaptureFixture  # noqa: F811
) -> None:
    path = picture("a.png", "--sign", str(credentials.certificate), str(credentials.key))
    status, out, _ = verify(capfd, path, "--model", tiny_model)
    assert (status, out) == (0, f"{path}: identical; signed by A. Signer: untouched since.\n")
    data = path.read_bytes()
    begin = data.index(b"tEXtparameters")
    end = begin + 4 + int.from_bytes(data[begin - 4 : begin], "big")
    chunk = data[begin:end].replace(b"apple", b"Apple")  # the very same picture
    path.write_bytes(data[:begin] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[end + 4 :])
    status, out, _ = verify(capfd, path, "--model", tiny_model, "--json")
    assert (status, json.loads(out)["seal"]["whole"]) == (1, False)

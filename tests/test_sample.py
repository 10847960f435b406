"""The command: prompts in, files out, and one sentence for every mistake."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion.metadata import request_of
from diffusion.pipeline import Pipeline, Progress
from diffusion.request import file_name
from diffusion.sample import main
from diffusion.texts import read_texts
from diffusion.verify import main as verify

ROOT = Path(__file__).parent.parent
HEAVY = {"torchvision", "transformers", "open_clip", "diffusers", "accelerate", "gradio", "torch._dynamo", "sympy"}


def sample(model: Path, out: Path, *options: str) -> int:
    return main(["a red apple", "--model", str(model), "--out", str(out), *options])


def test_pictures_of_every_prompt_and_seed(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    out = tmp_path / "new" / "folder"
    assert sample(tiny_model, out, "a blue star", "--seed", "5", "--count", "2", "--size", "16x32") == 0
    paths = [Path(line) for line in capfd.readouterr().out.splitlines()]
    assert sorted(paths) == sorted(out.iterdir())
    requests = [request_of(read_texts(path.read_bytes())) for path in paths]
    expected = [("a red apple", 5), ("a red apple", 6), ("a blue star", 5), ("a blue star", 6)]
    assert [(request.prompt, request.seed) for request in requests] == expected
    assert {Image.open(path).size for path in paths} == {(16, 32)}


def test_same_command_same_files(tiny_model: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        assert sample(tiny_model, tmp_path / out, "--count", "3") == 0
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("a", "b"))
    assert first == second
    assert sample(tiny_model, tmp_path / "c", "--seed", "1") == 0  # alone, it is the second of three
    (alone,) = (tmp_path / "c").iterdir()
    assert first[alone.name] == alone.read_bytes()


def test_several_at_once(tiny_model: Path, tmp_path: Path) -> None:
    assert sample(tiny_model, tmp_path, "--count", "3", "--batch", "2") == 0
    said = [json.loads(read_texts(path.read_bytes())["oboro"]) for path in tmp_path.iterdir()]
    assert [each["batch"] for each in said] == [2, 2, 2]
    assert verify([str(path) for path in tmp_path.iterdir()] + ["--model", str(tiny_model)]) == 0


def test_settings_reach_the_picture(tiny_model: Path, tmp_path: Path) -> None:
    options = ["--negative", "a star", "--steps", "3", "--sampler", "heun", "--schedule", "karras", "--guidance", "2"]
    assert sample(tiny_model, tmp_path / "apple.png", *options, "--dtype", "bfloat16") == 0
    texts = read_texts((tmp_path / "apple.png").read_bytes())
    request = request_of(texts)
    assert (request.negative, request.steps, request.sampler) == ("a star", 3, "heun")
    assert (request.schedule, request.guidance, request.width) == ("karras", 2.0, 16)
    assert json.loads(texts["oboro"])["dtype"] == "bfloat16"


@pytest.mark.parametrize(("suffix", "format"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_formats(tiny_model: Path, tmp_path: Path, suffix: str, format: str) -> None:
    assert sample(tiny_model, tmp_path / f"apple.{suffix}") == 0
    assert sample(tiny_model, tmp_path / "folder", "--format", format.lower()) == 0
    (path,) = (tmp_path / "folder").iterdir()
    assert path.suffix == f".{suffix}"
    assert path.read_bytes() == (tmp_path / f"apple.{suffix}").read_bytes()
    assert Image.open(path).format == format
    assert request_of(read_texts(path.read_bytes())).prompt == "a red apple"


def test_random_seeds_follow_one_another(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert sample(tiny_model, tmp_path, "--seed", "-1", "--count", "2", "--json") == 0
    first, second = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert second["seed"] == first["seed"] + 1
    assert Path(first["path"]).is_file()
    assert first["prompt"] == "a red apple"


def test_variations_are_of_one_picture(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    options = ["--variation-seed", "7", "--variation-strength", "0.1", "--count", "2", "--json"]
    assert sample(tiny_model, tmp_path, *options) == 0
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(request["seed"], request["variation_seed"]) for request in said] == [(0, 7), (0, 8)]
    texts = read_texts(Path(said[1]["path"]).read_bytes())
    assert "Variation seed: 8, Variation seed strength: 0.1" in texts["parameters"]
    assert request_of(texts).variation_seed == 8


def test_templates_make_a_picture_a_combination_and_draw_one_a_seed(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "colour.txt").write_text("red\nblue\ngreen\n")
    prompt = "a {e$$big|small} __colour__ {apple|star}"
    options = ["--wildcards", str(tmp_path), "--count", "12", "--steps", "1", "--json", "--dry-run"]
    assert main([prompt, "--model", str(tiny_model), "--out", str(tmp_path), *options]) == 0
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(request["seed"], request["template"]) for request in said] == [
        (seed, f"a {size} __colour__ {{apple|star}}") for size in ("big", "small") for seed in range(12)
    ]
    words = [request["prompt"].split() for request in said]
    assert {word for _, _, word, _ in words} == {"red", "blue", "green"}
    assert {word for _, _, _, word in words} == {"apple", "star"}
    assert [word[2:] for word in words[:12]] == [word[2:] for word in words[12:]]  # the seeds are the same


def test_from_an_image(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    photo, mask, out = tmp_path / "photo.jpg", tmp_path / "mask.png", tmp_path / "out"
    Image.effect_noise((24, 16), 90).convert("RGB").save(photo)
    Image.new("L", (24, 16), 255).save(mask)
    options = ["--image", str(photo), "--strength", "0.5", "--mask", str(mask), "--outpaint", "0,0,8,0", "--json"]
    assert sample(tiny_model, out, *options, "--fill", "noise", "--mask-blur", "1") == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["width"], said["height"], said["strength"], said["outpaint"]) == (32, 16, 0.5, [0, 0, 8, 0])
    assert said["image"] == file_name(photo.read_bytes())
    texts = read_texts(Path(said["path"]).read_bytes())
    assert "Denoising strength: 0.5, Mask blur: 1.0" in texts["parameters"]
    assert request_of(texts, [mask.read_bytes(), photo.read_bytes()]).mask == mask.read_bytes()
    with pytest.raises(ValueError, match=r"image is the file 'sha256:.*', which is not here"):
        request_of(texts)


def test_second_pass(tiny_model: Path, tmp_path: Path) -> None:
    options = ["--hires-scale", "2", "--hires-steps", "2", "--hires-upscaler", "Lanczos"]
    assert sample(tiny_model, tmp_path / "large.png", *options) == 0
    texts = read_texts((tmp_path / "large.png").read_bytes())
    assert Image.open(tmp_path / "large.png").size == (32, 32)
    expected = "Denoising strength: 0.7, Hires upscale: 2.0, Hires steps: 2, Hires upscaler: Lanczos"
    assert expected in texts["parameters"]


def test_grid(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert sample(tiny_model, tmp_path, "a blue star", "--count", "3", "--grid", "--json") == 0
    *lines, last = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    sheet = Image.open(last["grid"])
    assert sheet.size == (48, 32)  # a row a prompt
    for i, line in enumerate(lines):
        x, y = 16 * (i % 3), 16 * (i // 3)
        assert sheet.crop((x, y, x + 16, y + 16)).tobytes() == Image.open(line["path"]).tobytes()
    assert sample(tiny_model, tmp_path, "--count", "5", "--grid", "--json") == 0
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert Image.open(last["grid"]).size == (64, 32)  # about twice as wide as high


def test_dry_run_writes_nothing(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert sample(tiny_model, tmp_path / "out", "--count", "2", "--dry-run", "--json") == 0
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [request["seed"] for request in said] == [0, 1]
    assert not (tmp_path / "out").exists()
    assert sample(tiny_model, tmp_path / "out", "--json", "--count", "2") == 0
    assert [json.loads(line) for line in capfd.readouterr().out.splitlines()] == said


def mistake(capfd: pytest.CaptureFixture, status: int) -> str:
    """The one sentence on stderr that goes with exit code 2, and nothing on stdout."""
    out, err = capfd.readouterr()
    assert status == 2
    assert not out
    assert err.startswith("python -m diffusion.sample: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sampler", "eular"], "choose one of euler"),
        (["--schedule", "carras"], "choose one of automatic"),
        (["--size", "17"], "not a multiple of 2"),
        (["--size", "16x"], "'16x'"),
        (["--size", "big"], "'big'"),
        (["--size", "1e9"], "'1e9'"),
        (["--size", "0"], "from 2 to 2048"),
        (["--steps", "0"], "from 1 to 1000"),
        (["--guidance", "nan"], "from 0 to 100"),
        (["--seed", "-2"], "from 0 to"),
        (["--seed", str(2**63 - 1), "--count", "2"], "from 0 to"),
        (["--count", "0"], "--count is 0"),
        (["--batch", "0"], "--batch is 0"),
        (["apple " * 50, "--prompt-syntax", "plain"], "tokens and this model reads 14 at once"),
        (["--negative", "(apple:1e9)", "--prompt-syntax", "comfy"], "The weight of 'apple'"),
        (["--out", "a.jpg", "--format", "png"], "a.jpg is a JPEG file and --format is PNG"),
        (["--device", "gpu"], "There is no device 'gpu'"),
        (["--device", "cpu:1"], "cpu:1"),
        (["--device", "meta"], "meta"),
        (["--device", "cpu", "--offload"], "--offload spares another device's memory"),
        (["--device", "cuda:99"], "--device cuda:99 is not there"),
        (["--model", "nowhere"], "There is no model 'nowhere'"),
        (["--image", "nowhere.png"], "nowhere.png: No such file"),
        (["--image", __file__], "The image cannot be used: it is no readable PNG, JPEG or WebP image"),
        (["--image", "/dev/zero"], "/dev/zero is larger than 64 MiB"),
        (["--strength", "0.5"], "The strength does nothing without an image"),
        (["--outpaint", "8"], "--outpaint is '8'; expected left, top, right and bottom, as 0,0,32,0."),
        (["--hires-scale", "99"], "The hires scale is 99.0; expected a number from 1 to 8."),
    ],
)
def test_mistakes(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture, options: list[str], said: str
) -> None:
    assert said in mistake(capfd, sample(tiny_model, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert "try --device cpu" in mistake(capfd, sample(tiny_model, tmp_path / "out", "--device", "cuda"))


def test_models_that_cannot_be_used(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    weights = Path("unet/diffusion_pytorch_model.safetensors")
    whole = (tiny_model / weights).read_bytes()
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    for damaged, said in (
        (whole[:-100], "is cut short"),
        (whole[:4], "is not a safetensors file"),
        (whole + b"more", "is damaged"),
        (b"\x80\x04\x95" + bytes(100), "is a pickle"),
        (b"PK\x03\x04" + bytes(100), "is a zip archive"),
    ):
        (folder / weights).write_bytes(damaged)
        assert said in mistake(capfd, sample(folder, tmp_path / "out"))
    assert "alone" in mistake(capfd, sample(tiny_model / "unet", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_be_written(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("here")
    assert "file" in mistake(capfd, sample(tiny_model, tmp_path / "file"))
    assert "file" in mistake(capfd, sample(tiny_model, tmp_path / "file" / "below"))
    assert "names one picture" in mistake(capfd, sample(tiny_model, tmp_path / "a.png", "--count", "2"))
    (tmp_path / "folder.png").mkdir()
    assert sample(tiny_model, tmp_path / "folder.png") == 0  # a folder, whatever its name
    assert len(list((tmp_path / "folder.png").iterdir())) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_interrupted(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second picture: the first one stays, whole, and nothing of the second."""
    generate = Pipeline.generate

    def interrupted(pipeline, requests, progress, batch):  # type: ignore[no-untyped-def]
        def press(step: Progress) -> None:
            progress(step)
            if step.picture == 1:
                raise KeyboardInterrupt

        return generate(pipeline, requests, press, batch)

    monkeypatch.setattr(Pipeline, "generate", interrupted)
    assert sample(tiny_model, tmp_path, "--count", "3") == 130
    out, err = capfd.readouterr()
    (path,) = tmp_path.iterdir()
    assert out == f"{path}\n"
    assert "Stopped; 1 of 3 pictures are in" in err
    assert request_of(read_texts(path.read_bytes())).seed == 0


def test_reader_that_goes_away(tiny_model: Path, tmp_path: Path) -> None:
    assert sample(tiny_model, tmp_path / "a.png") == 0
    for module, *options in (("sample", "a red apple", "--out", tmp_path), ("verify", tmp_path / "a.png")):
        command = [sys.executable, "-m", f"diffusion.{module}", *map(str, options), "--model", str(tiny_model)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout
        process.stdout.close()
        _, err = process.communicate()
        assert process.returncode == 141
        assert "rror" not in err


def test_help_has_examples(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    out = capfd.readouterr().out
    assert 'python -m diffusion.sample "a red apple"' in out
    assert "uni_pc" in out


def test_process_is_lean(tiny_model: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from diffusion.sample import main; "
        f"status = main(['a red apple', '--model', {str(tiny_model)!r}, '--out', {str(tmp_path / 'a.png')!r}]); "
        f"print(status, sorted({HEAVY!r} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [str(tmp_path / "a.png"), "0 []"]
    assert (tmp_path / "a.png").is_file()

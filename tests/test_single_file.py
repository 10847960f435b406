"""Single files in the original layout: what diffusers reads of ours, and what we read without its configurations."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import models
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from benchmarks.parity import difference
from clip.text import TextConfig
from diffusion.checkpoint import find_model, load_model
from diffusion.model import Model
from diffusion.pipeline import Pipeline
from diffusion.request import Request
from diffusion.sample import main
from diffusion.single_file import save_single_file
from diffusion.texts import read_texts
from diffusion.verify import main as verify
from diffusion.vocabulary import find_tokenizers

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def single(sd_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The single file of a kind as we save it."""
    root = tmp_path_factory.mktemp("single")

    def make(kind: str) -> Path:
        path = root / f"{kind}.safetensors"
        if not path.is_file():
            save_single_file(path, load_model(sd_folder(kind)))
        return path

    return make


@pytest.fixture
def bare(single: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """The same as others publish it: without our metadata, with theirs or other weights."""

    def make(kind: str, metadata: dict[str, str] | None = None, **weights: Tensor) -> Path:
        path = tmp_path / f"{kind}-bare.safetensors"
        save_file(load_file(single(kind)) | weights, path, metadata)
        return path

    return make


def networks(model: Model) -> list[nn.Module]:
    return [*model.text_encoders, model.unet, model.autoencoder]


def assert_same(ours: State, theirs: State) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.mark.parametrize("kind", models.KINDS)
def test_diffusers_reads_our_file_and_its_picture_is_ours_without_our_metadata(
    sd_folder: Callable[[str], Path], single: Callable[[str], Path], bare: Callable[..., Path], kind: str
) -> None:
    folder = sd_folder(kind)
    library = StableDiffusionXLPipeline if kind == "xl" else StableDiffusionPipeline
    theirs = library.from_single_file(single(kind), config=str(folder), local_files_only=True)
    saved = DiffusionPipeline.from_pretrained(folder)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2")[: 4 if kind == "xl" else 3]:
        assert_same(getattr(theirs, part).state_dict(), getattr(saved, part).state_dict())

    prediction_type = "v_prediction" if kind == "sd2" else None  # no rule can tell it of random weights
    model = load_model(bare(kind), tokenizer=folder, prediction_type=prediction_type)
    expected = load_model(folder)
    for ours, other in zip(networks(model), networks(expected), strict=True):
        assert_same(ours.state_dict(), other.state_dict())
    assert model.reading == expected.reading
    assert model.name == f"{kind}-bare"
    assert list(model.hashes) == [f"{kind}-bare.safetensors"]

    pipeline = Pipeline(model)
    request = Request("a red apple", "a star", 1, steps=2, guidance=3, width=24, height=16, sampler="euler")
    (ours,) = pipeline.generate([request])
    theirs.scheduler = type(theirs.scheduler)(**model.noise.config.to_dict())
    theirs.set_progress_bar_config(disable=True)
    picture = theirs(
        request.prompt, negative_prompt=request.negative, latents=pipeline.noise(ours.request)(),
        num_inference_steps=2, guidance_scale=3, width=24, height=16,
    ).images[0]  # fmt: skip
    assert difference(ours.image, picture).within_rounding


@pytest.mark.parametrize("kind", models.KINDS)
def test_our_own_metadata_tell_everything(
    sd_folder: Callable[[str], Path], single: Callable[[str], Path], kind: str
) -> None:
    model, expected = load_model(single(kind), tokenizer=sd_folder(kind)), load_model(sd_folder(kind))
    assert (model.noise.config, model.reading, model.defaults) == (
        expected.noise.config, expected.reading, expected.defaults,
    )  # fmt: skip
    for ours, other in zip(networks(model), networks(expected), strict=True):
        assert ours.config == other.config
        assert_same(ours.state_dict(), other.state_dict())
    for ours, other in zip(model.tokenizers, expected.tokenizers, strict=True):
        assert torch.equal(ours(["a red apple"]), other(["a red apple"]))


def test_any_folder_s_tokenizer_pads_as_the_tower_was_trained(
    sd_folder: Callable[[str], Path], single: Callable[[str], Path]
) -> None:
    for kind in ("sd2", "xl"):
        model = load_model(single(kind), tokenizer=sd_folder("sd1") / "tokenizer")
        assert [tokenizer.pad for tokenizer in model.tokenizers] == {"sd2": [0], "xl": [551, 0]}[kind]


def test_whole_tower_of_2_is_read_without_its_last_layer(
    single: Callable[[str], Path], bare: Callable[..., Path], sd_folder: Callable[[str], Path]
) -> None:
    prefix = "cond_stage_model.model."
    last = {
        name.replace("resblocks.2.", "resblocks.3."): -weight
        for name, weight in load_file(single("sd2")).items()
        if name.startswith(f"{prefix}transformer.resblocks.2.")
    }
    extra = {f"{prefix}text_projection": torch.eye(128), f"{prefix}logit_scale": torch.ones(())}
    model = load_model(bare("sd2", **last, **extra), tokenizer=sd_folder("sd2"))
    expected = load_model(sd_folder("sd2"))
    assert_same(model.text_encoders[0].state_dict(), expected.text_encoders[0].state_dict())


SPREAD = "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.norm1.bias"


@pytest.mark.parametrize(
    ("kind", "metadata", "weights", "asked", "found"),
    [
        ("sd1", {}, {}, None, "epsilon"),
        ("sd1", {"modelspec.prediction_type": "v"}, {}, None, "v_prediction"),
        ("sd1", {"modelspec.prediction_type": "v"}, {}, "epsilon", "epsilon"),
        ("sd1", {}, {}, "sample", "sample"),
        ("sd2", {}, {SPREAD: torch.linspace(-1, 1, 64)}, None, "v_prediction"),
        ("sd2", {}, {SPREAD: torch.zeros(64)}, None, "epsilon"),
        ("sd2", {"modelspec.prediction_type": "epsilon"}, {SPREAD: torch.linspace(-1, 1, 64)}, None, "epsilon"),
        ("xl", {}, {}, None, "epsilon"),
        ("xl", {}, {"v_pred": torch.zeros(0)}, None, "v_prediction"),
        ("xl", {}, {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, None, "v_prediction"),
    ],
)
def test_prediction_type(
    bare: Callable[..., Path], sd_folder: Callable[[str], Path],
    kind: str, metadata: dict[str, str], weights: State, asked: str | None, found: str,
) -> None:  # fmt: skip
    model = load_model(bare(kind, metadata, **weights), tokenizer=sd_folder(kind), prediction_type=asked)
    config = model.noise.config
    assert config.prediction_type == found
    assert model.describe() == ({"Prediction type": asked} if asked else {})
    assert (config.rescale_betas_zero_snr, config.timestep_spacing) == (
        (True, "trailing") if "ztsnr" in weights else (False, "leading")
    )
    assert (config.beta_schedule, config.beta_end, config.steps_offset) == ("scaled_linear", 0.012, 1)


def test_v_prediction_and_zero_snr_are_marked_for_others(sd_folder: Callable[[str], Path], tmp_path: Path) -> None:
    copy = shutil.copytree(sd_folder("xl"), tmp_path / "model")
    models.edit(copy / "scheduler" / "scheduler_config.json", **models.NOISES["sd2"])
    save_single_file(tmp_path / "v.safetensors", load_model(copy))
    assert {"v_pred", "ztsnr"} <= load_file(tmp_path / "v.safetensors").keys()


def test_cosxl_is_known_by_its_sigmas(bare: Callable[..., Path], sd_folder: Callable[[str], Path]) -> None:
    path = bare("xl", **{"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)})
    model = load_model(path, tokenizer=sd_folder("xl"))
    config = model.noise.config
    assert (config.scheduler, config.predicts, config.sigma_data) == ("EDMEulerScheduler", "v_prediction", 1)
    assert (config.sigma_max, config.sigma_min) == (120, pytest.approx(0.002))
    save_single_file(path, model)
    assert {"edm_vpred.sigma_max", "edm_vpred.sigma_min"} <= load_file(path).keys()


def removed(state: State, *prefixes: str) -> State:
    return {name: weight for name, weight in state.items() if not name.startswith(prefixes)}


def moved(state: State, old: str, new: str) -> State:
    return {name.replace(old, new): weight for name, weight in state.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: removed(s, "model."), "is no Stable Diffusion: a model's single file has weights named model.diff"),
        (lambda s: removed(s, "cond_stage"), "is a U-Net without its text encoder"),
        (lambda s: removed(s, "first_stage"), "has no autoencoder; name one with --vae"),
        (lambda s: removed(moved(s, "first_stage_model.", ""), "model", "cond"), "is an autoencoder alone; give it as"),
        (lambda s: {"lora_unet_down": torch.ones(1)}, "is a LoRA"),
        (lambda s: s | {"edm_mean": torch.ones(4)}, "with latents_std=None is not supported"),
        (lambda s: s | {"edm_vpred.sigma_max": torch.zeros(())}, "sigma_max 0.0"),
        (lambda s: {"control_model.a": torch.ones(1)}, "is a ControlNet"),
        (lambda s: {"model.diffusion_model.double_blocks.0": torch.ones(1)}, "FLUX"),
        (lambda s: {"model.diffusion_model.joint_blocks.0": torch.ones(1)}, "Stable Diffusion 3"),
        (lambda s: removed(s, "model.diffusion_model.out.2.bias"), "has no conv_out.bias"),
        (lambda s: s | {"model.diffusion_model.more": torch.ones(1)}, "has more, which"),
        (lambda s: removed(s, "model.diffusion_model.input_blocks.0.0."), "input_blocks.0.0.weight"),
    ],
)
def test_what_is_no_model_is_refused_in_one_sentence(
    single: Callable[[str], Path], sd_folder: Callable[[str], Path], tmp_path: Path,
    change: Callable[[State], State], said: str,
) -> None:  # fmt: skip
    path = tmp_path / "file.safetensors"
    save_file(change(load_file(single("sd1"))), path)
    with pytest.raises(ValueError, match=r".") as mistake:
        load_model(path, tokenizer=sd_folder("sd1"))
    assert said in str(mistake.value)
    assert str(path) in str(mistake.value)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "bin", "safetensors"])
def test_pickles_are_known_by_their_bytes_and_told_how_to_convert(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    torch.save({"model.diffusion_model.out.2.bias": torch.ones(4)}, path)
    with pytest.raises(ValueError, match=r"can run code when it is loaded.*weights_only=True") as mistake:
        load_model(path)
    assert "\n" not in str(mistake.value)


def test_another_autoencoder_from_a_single_file(
    single: Callable[[str], Path], sd_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    other = load_model(sd_folder("sd2")).autoencoder.state_dict()
    alone = {name: w for name, w in load_file(single("sd2")).items() if name.startswith("first_stage_model.")}
    save_file(moved(alone, "first_stage_model.", ""), tmp_path / "vae.safetensors")
    for path in (single("sd2"), tmp_path / "vae.safetensors"):
        swapped = load_model(sd_folder("xl"), vae=path)
        assert_same(swapped.autoencoder.state_dict(), other)
        assert f"vae/{path.name}" in swapped.hashes
        assert swapped.describe()["VAE"] == path.name
    bare = removed(load_file(single("sd1")), "first_stage_model.")
    save_file(bare, tmp_path / "without.safetensors")
    given = load_model(tmp_path / "without.safetensors", vae=sd_folder("sd1"), tokenizer=sd_folder("sd1"))
    assert given.defaults.size == 512
    assert swapped.autoencoder.config.scaling_factor == 0.13025  # XL's latents, whichever autoencoder decodes them
    save_file({"a": torch.ones(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match="has no autoencoder"):
        load_model(sd_folder("sd1"), vae=tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match="no autoencoder 'nowhere'"):
        load_model(sd_folder("sd1"), vae="nowhere")


def test_vocabulary_is_open_clip_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))  # nothing is cached
    ours = find_tokenizers(tmp_path, [TextConfig(), TextConfig()], [False, True], None)
    ours[0].save(tmp_path / "tokenizer")
    text = "a red apple 赤いりんご, isn't it?"
    assert torch.equal(ours[0]([text])[0], torch.tensor(clip_ids(tmp_path / "tokenizer", text)))
    assert (ours[0].vocab_size, ours[0].pad, ours[1].pad) == (49408, 49407, 0)
    assert ours[0].encode("a photo of a cat") == [320, 1125, 539, 320, 2368]  # OpenAI's own ids

    cached = tmp_path / "models--openai--clip-vit-large-patch14"
    shutil.copytree(tmp_path / "tokenizer", cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr("diffusion.vocabulary.find_spec", lambda name: None)  # open_clip is not there
    (again,) = find_tokenizers(tmp_path, [TextConfig()], [True], None)
    assert torch.equal(again([text]), ours[1]([text]))
    shutil.rmtree(cached)
    with pytest.raises(ValueError, match="pip install open-clip-torch"):
        find_tokenizers(tmp_path, [TextConfig()], [False], None)


def clip_ids(folder: Path, text: str) -> list[int]:
    return CLIPTokenizer.from_pretrained(folder)(text, padding="max_length", max_length=77).input_ids


def test_models_of_the_hub_are_found_in_its_cache_and_fetched_only_where_asked(
    sd_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    repository = tmp_path / "hub" / "models--someone--tiny-model"
    shutil.copytree(sd_folder("sd1"), repository / "blobs")
    for file in sorted((repository / "blobs").rglob("*.*")):  # there every file of a model is a link
        link = repository / "snapshots" / "0a1b" / file.relative_to(repository / "blobs")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0a1b")
    assert find_model("someone/tiny-model") == repository / "snapshots" / "0a1b"
    assert load_model("someone/tiny-model").name == "someone/tiny-model"
    for command in (["--model", "someone/other"], ["--model", "someone/other", "--dry-run"]):
        assert main(["a cat", *command]) == 2
        assert "--allow-download fetches it from there" in capsys.readouterr().err


def test_what_is_fetched_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "model_index.json", "README.md", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt", "tokenizer/merges.txt",
        "unet/a.safetensors", "unet/a.fp16.safetensors", "unet/a.non_ema.safetensors", "unet/a.bin",
        "vae/b.fp16.safetensors",
    }  # fmt: skip
    wanted = ["model_index.json", "tokenizer/merges.txt", "unet/a.safetensors", "vae/b.fp16.safetensors"]
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name: sorted(files))
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, allow_patterns: asked.append(allow_patterns) or str(tmp_path)
    )
    assert find_model("someone/other", allow_download=True) == tmp_path
    assert asked == [wanted]

    def unreachable(name: str) -> list[str]:
        raise OSError("there is\nno network")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
    with pytest.raises(ValueError, match="someone/other cannot be fetched from the Hugging Face Hub: there is no net"):
        find_model("someone/other", allow_download=True)


def test_damaged_headers_are_refused(single: Callable[[str], Path], tmp_path: Path) -> None:
    data = bytearray(single("sd1").read_bytes())
    path = tmp_path / "model.safetensors"
    for broken in (data[:-1], data[:1000], struct.pack("<Q", 2**40) + bytes(data[8:]), bytes(data) + b"x"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"fetch it again|safetensors files are read"):
            load_model(path)


def test_picture_of_a_single_file_and_another_autoencoder_is_made_again(
    single: Callable[[str], Path], sd_folder: Callable[[str], Path], tmp_path: Path, capsys: Any
) -> None:
    options = ["--vae", str(single("sd2")), "--tokenizer", str(sd_folder("sd1"))]
    picture = str(tmp_path / "apple.png")
    made = ["a red apple", "--model", str(single("sd1")), *options, "--steps", "1", "--size", "16", "--out", picture]
    assert main(made) == 0
    texts = read_texts(Path(picture).read_bytes())
    assert "VAE: sd2.safetensors" in texts["parameters"]
    capsys.readouterr()
    assert verify([picture, "--model", str(single("sd1")), *options]) == 0
    assert "identical" in capsys.readouterr().out
    assert verify([picture, "--model", str(single("sd1")), *options[2:]]) == 1
    assert "vae/sd2.safetensors" in capsys.readouterr().out

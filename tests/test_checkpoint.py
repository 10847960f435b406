"""Model folders: out, in, in diffusers, and the many ways in which one can be wrong."""

import hashlib
import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from clip.durable import write_atomically
from diffusion.autoencoder import PixelSpace
from diffusion.checkpoint import DEFAULT_MODEL, SHIPPED, Model, find_model, load_model
from diffusion.weights import Safetensors, strict_json

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
PARTS = ["model_index.json", "generation_config.json", "tokenizer", "text_encoder", "unet", "scheduler", "SHA256SUMS"]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy to be broken, without the sums, which would refuse every change alike."""
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "SHA256SUMS").unlink()
    return tmp_path / "model"


def refused(folder: Path) -> str:
    """The one sentence with which the folder is refused."""
    with pytest.raises(ValueError, match=r".") as mistake:
        load_model(folder)
    assert str(folder.parent) in str(mistake.value)  # it says which file or folder
    assert "\n" not in str(mistake.value)
    return str(mistake.value)


def networks(model: Model) -> list[nn.Module]:
    return [*model.text_encoders, model.unet, model.autoencoder]


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_folder_has_the_layout_and_the_values(tiny_model: Path) -> None:
    assert {path.name for path in tiny_model.iterdir()} == {*PARTS, "vae"}
    assert json.loads((tiny_model / "generation_config.json").read_text()) == {
        "steps": 4, "sampler": "euler", "schedule": "automatic", "guidance": 3.0, "size": 16,
    }  # fmt: skip
    model = load_model(tiny_model)
    assert (model.name, model.defaults.steps, model.noise.config.prediction_type) == ("tiny", 4, "v_prediction")
    for network in networks(model):
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        assert not network.training
    stored = load_file(tiny_model / UNET)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert all(torch.equal(weight, stored[name].float()) for name, weight in model.unet.state_dict().items())
    assert set(model.hashes) == {UNET, VAE, "text_encoder/model.safetensors"}


def test_model_of_pixels_has_no_vae(pixel_model: Path) -> None:
    assert {path.name for path in pixel_model.iterdir()} == set(PARTS)
    assert isinstance(load_model(pixel_model).autoencoder, PixelSpace)


def test_diffusers_opens_it_and_we_open_what_diffusers_saves(tiny_model: Path, tmp_path: Path) -> None:
    theirs = StableDiffusionPipeline.from_pretrained(tiny_model, torch_dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "again")
    ours, again = load_model(tiny_model), load_model(tmp_path / "again")
    for before, after in zip(networks(ours), networks(again), strict=True):
        expected, found = before.state_dict(), after.state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(weight, found[name]) for name, weight in expected.items())
    assert torch.equal(ours.noise.sigmas, again.noise.sigmas)
    assert torch.equal(ours.tokenizers[0](["a red apple"]), again.tokenizers[0](["a red apple"]))
    assert (again.defaults.steps, again.defaults.sampler, again.defaults.size) == (25, "euler", 16)


def test_attention_of_stable_diffusion_1_has_old_names(folder: Path) -> None:
    weights = load_file(folder / VAE)
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        weights = {name.replace(f".attentions.0.{new}.", f".attentions.0.{old}."): w for name, w in weights.items()}
    assert any(".attentions.0.query." in name for name in weights)
    save_file(weights, folder / VAE)
    load_model(folder)


def test_missing_parts_are_named(folder: Path, tiny_model: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").unlink()
    assert "scheduler_config.json" in refused(folder)
    shutil.rmtree(folder / "scheduler")
    assert "no folder scheduler" in refused(folder)
    edit(folder / "model_index.json", scheduler=[None, None])
    assert "names no scheduler" in refused(folder)
    (folder / UNET).unlink()
    edit(folder / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])
    shutil.copytree(tiny_model / "scheduler", folder / "scheduler")
    assert "no diffusion_pytorch_model.safetensors" in refused(folder)


@pytest.mark.parametrize(
    ("part", "named", "said"),
    [
        ("unet", ["diffusers", "UNet2DModel"], "expected UNet2DConditionModel of diffusers"),
        ("unet", ["my_code", "UNet2DConditionModel"], "my_code.UNet2DConditionModel"),
        ("scheduler", ["diffusers", "NoSuchScheduler"], "NoSuchScheduler"),
        ("text_encoder", ["transformers", "T5EncoderModel"], "T5EncoderModel"),
        ("controlnet", ["diffusers", "ControlNetModel"], "no such part"),
        ("_class_name", "FluxPipeline", "FluxPipeline"),
        ("_class_name", ["pipeline", "MyPipeline"], "MyPipeline"),
        ("auto_map", {"AutoModel": "evil.Model"}, "auto_map"),
        ("trust_remote_code", True, "trust_remote_code"),
        ("custom_pipeline", "evil", "custom_pipeline"),
    ],
)
def test_index_names_known_parts_alone(folder: Path, part: str, named: Any, said: str) -> None:
    edit(folder / "model_index.json", **{part: named})
    assert said in refused(folder)


@pytest.mark.parametrize(
    ("path", "values", "said"),
    [
        ("unet/config.json", {"auto_map": {}}, "auto_map"),
        ("text_encoder/config.json", {"trust_remote_code": True}, "trust_remote_code"),
        ("tokenizer/tokenizer_config.json", {"auto_map": {}}, "auto_map"),
        ("unet/config.json", {"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet/config.json", {"block_out_channels": "wide"}, "unet"),
        ("unet/config.json", {"block_out_channels": [32, 128]}, "down_blocks.1."),
        ("unet/config.json", {"layers_per_block": 2}, "has no down_blocks.0.resnets.1."),
        ("unet/config.json", {"cross_attention_dim": 48}, "attn2.to_k.weight"),
        ("unet/config.json", {"in_channels": 9}, "conv_in.weight"),
        ("vae/config.json", {"mid_block_add_attention": False}, "does not ask for"),
        ("scheduler/scheduler_config.json", {"prediction_type": "magic"}, "magic"),
        ("generation_config.json", {"cfg": 3}, "'cfg'"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 77}, "77 ids a text"),
    ],
)
def test_configurations_that_cannot_be_honoured(folder: Path, path: str, values: dict[str, Any], said: str) -> None:
    edit(folder / path, **values)
    assert said in refused(folder)


def test_parts_of_different_models(folder: Path, pixel_model: Path) -> None:
    shutil.rmtree(folder / "unet")
    shutil.copytree(pixel_model / "unet", folder / "unet")
    assert "4 channels of latents" in refused(folder)


def test_folders_of_another_kind(tmp_path: Path, tiny_model: Path) -> None:
    def make(name: str, **files: str) -> Path:
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file.replace("__", ".")).write_text(text)
        return tmp_path / name

    assert "is empty" in refused(make("a"))
    assert "is a LoRA" in refused(make("b", adapter_config__json="{}"))
    assert "is a LoRA" in refused(make("c", pytorch_lora_weights__safetensors=""))
    assert "is a gpt2 alone" in refused(make("d", config__json='{"model_type": "gpt2"}'))
    assert "has no model_index.json" in refused(make("e", notes__txt=""))
    assert "is a UNet2DConditionModel alone" in refused(tiny_model / "unet")
    assert "is no Stable Diffusion" in refused(tiny_model / UNET)
    with pytest.raises(ValueError, match="There is no model 'nowhere'"):
        find_model("nowhere")


def test_folder_of_pickles_alone(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    assert "convert it to safetensors" in refused(folder)


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as zipped:
            zipped.writestr("archive/data.pkl", b"x")
    elif kind == "torch":
        torch.save({"weight": torch.ones(1)}, file)
    elif kind == "tar":
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("data.pkl"))
    elif kind == "hdf5":
        file.write(b"\x89HDF\r\n\x1a\n" + bytes(100))
    else:
        file.write(pickle.dumps({"weight": [1.0]}, protocol=int(kind)))
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("zip", "zip archive"),
        ("torch", "zip archive"),
        ("tar", "tar archive"),
        ("hdf5", "HDF5"),
        ("0", "not a safetensors file"),
        ("2", "is a pickle"),
        ("4", "is a pickle"),
        ("5", "is a pickle"),
    ],
)
def test_other_files_under_the_name_of_safetensors(folder: Path, kind: str, said: str) -> None:
    for name in (UNET, "text_encoder/model.safetensors"):
        original = (folder / name).read_bytes()
        (folder / name).write_bytes(archive(kind))
        assert said in refused(folder)
        (folder / name).write_bytes(original)


def test_pickle_is_never_run(folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return exec, (f"open({str(tmp_path / 'run')!r}, 'w')",)

    (folder / UNET).write_bytes(pickle.dumps(Evil()))
    refused(folder)
    assert not (tmp_path / "run").exists()


def safetensors(header: dict[str, Any] | str, data: bytes = bytes(8)) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"", "is empty"),
        (b"abc", "is not a safetensors file"),
        ((2**62).to_bytes(8, "little") + b"{}", "is not a safetensors file"),
        (safetensors({"a": entry()})[:-1], "is cut short"),
        (safetensors({"a": entry()})[:20], "is cut short"),
        (safetensors({"a": entry()}) + b"PK", "is damaged"),
        (safetensors('{"a": 1'), "is not valid JSON"),
        (safetensors('{"a": {}, "a": {}}'), "'a' is given twice"),
        (safetensors("{" + '"a":{' * 100_000), "is not valid JSON"),
        (safetensors({"a": entry("F31")}), "do not agree"),
        (safetensors({"a": entry(shape=[-2])}), "do not agree"),
        (safetensors({"a": entry(shape=[True, 2])}), "do not agree"),
        (safetensors({"a": entry(shape=[3])}), "do not agree"),
        (safetensors({"a": entry(offsets=[8, 0])}), "do not agree"),
        (safetensors({"a": 1}), "do not agree"),
        (safetensors({"a": entry(shape=[1], offsets=[4, 8])}), "starts at byte 4, not 0"),
        (safetensors({"a": entry(), "b": entry()}), "starts at byte 0, not 8"),
        (safetensors({"__metadata__": {"x": "y" * 1_000_001}, "a": entry()}), "metadata"),
        (safetensors({"__metadata__": [], "a": entry()}), "metadata"),
    ],
)
def test_unsound_safetensors(tmp_path: Path, file: bytes, said: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file)
    with pytest.raises(ValueError, match=said):
        Safetensors(path)


def test_sound_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"b": torch.ones(2, 3), "a": torch.zeros(()), "c": torch.ones(0)}
    save_file(tensors, path, metadata={"format": "pt"})
    Safetensors(path)
    header = json.dumps({"a": entry()})  # padded to 640 bytes, it makes the file begin as a pickle does
    path.write_bytes(safetensors(header + " " * (640 - len(header))))
    assert path.read_bytes()[:2] == b"\x80\x02"
    Safetensors(path)


def test_strict_json_looks_into_every_object() -> None:
    with pytest.raises(ValueError, match="'b' is given twice"):
        strict_json(b'{"a": {"b": 1, "b": 2}}', "it")
    with pytest.raises(ValueError, match="not a JSON object"):
        strict_json(b"[]", "it")
    with pytest.raises(ValueError, match="not valid JSON"):
        strict_json(b"\xff\xfe", "it")


def test_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")  # type: ignore[arg-type]
    (tmp_path / "folder" / "in it").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", b"new")
    assert path.read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


def test_sums_are_those_of_sha256sum_and_hold_for_the_shipped_model(tiny_model: Path) -> None:
    for folder in (tiny_model, SHIPPED / DEFAULT_MODEL):
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        sums = {name: sum for sum, name in (line.split("  ") for line in lines)}
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        assert sums.keys() == files.keys() - {"SHA256SUMS"}
        assert all(hashlib.sha256(files[name].read_bytes()).hexdigest() == sum for name, sum in sums.items())
        model = load_model(folder)
        assert model.hashes == {name: sum for name, sum in sums.items() if name.endswith(".safetensors")}


@pytest.mark.parametrize(
    "name",
    [UNET, "unet/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt", PARTS[0], PARTS[1]],
)
def test_one_flipped_bit_is_refused(tiny_model: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    data = bytearray((folder / name).read_bytes())
    data[-9] ^= 2
    (folder / name).write_bytes(data)
    assert "SHA256SUMS" in refused(folder) or "not valid JSON" in refused(folder)


def test_sums_name_all_that_is_read(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    sums, defaults = folder / "SHA256SUMS", folder / "generation_config.json"
    whole, said = sums.read_text(), defaults.read_text()
    defaults.unlink()
    assert "has no generation_config.json, which its SHA256SUMS names" in refused(folder)
    defaults.write_text(said)
    sums.write_text("".join(line for line in whole.splitlines(True) if "generation" not in line))
    assert "generation_config.json was added since SHA256SUMS" in refused(folder)
    for line, broken in ((1, "x" + whole), (1, ""), (2, whole.split("\n")[0] + "\n" + whole)):
        sums.write_text(broken or "\n")
        assert f"damaged in line {line}" in refused(folder)
    sums.unlink()
    load_model(folder)

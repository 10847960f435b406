"""LoRAs: files of every style, beside the layers of a model as in diffusers and peft, named by requests."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from models import save_model
from networks import relative_error
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from test_pipeline import psnr
from torch import Tensor, nn

from diffusion.adapters import Adapters, Lora, delta, split_loras
from diffusion.checkpoint import Model, load_model
from diffusion.metadata import request_of
from diffusion.open import open_pipeline
from diffusion.original import original_name, original_names
from diffusion.parameters import read_parameters, split_parameters
from diffusion.pipeline import Pipeline
from diffusion.request import Request, from_json, to_json
from diffusion.sample import main
from diffusion.unet import UNetConfig

UNET_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj"]
CONVOLUTIONS = ["conv_in", "conv1", "time_emb_proj", "downsamplers.0.conv", "conv_shortcut"]
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def library(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_terms(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5


def save_peft(model: Path, path: Path, seed: int = 1) -> None:
    """As diffusers writes it today, alphas in the metadata."""
    pipeline = library(model)
    unet = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=UNET_LAYERS + CONVOLUTIONS,
        alpha_pattern={"mid_block.attentions.0.proj_in": 2},
    )  # fmt: skip
    text = peft.LoraConfig(r=2, lora_alpha=3, target_modules=TEXT_LAYERS)
    metadata = {}
    for name, network, config in (("unet", pipeline.unet, unet), ("text_encoder", pipeline.text_encoder, text)):
        peft.inject_adapter_in_model(config, network, "default")
        draw_terms(network, seed)
        said = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
        metadata[f"{name}_lora_adapter_metadata"] = said
    StableDiffusionPipeline.save_lora_weights(
        path.parent,
        unet_lora_layers=get_peft_model_state_dict(pipeline.unet, adapter_name="default"),
        text_encoder_lora_layers=get_peft_model_state_dict(pipeline.text_encoder, adapter_name="default"),
        weight_name=path.name,
        **metadata,
    )


def layers(network: nn.Module, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and name.endswith(tuple(names)):
            yield name, layer.weight


def save_kohya(model: Path, path: Path, seed: int = 2) -> None:
    """As kohya's scripts write it, with convolutions: names with `_` for every dot, an alpha a layer.

    The U-Net of Stable Diffusion XL has the original layout's names there.
    """
    pipeline, weights, generator = library(model), {}, torch.Generator().manual_seed(seed)
    networks = [("lora_unet_", pipeline.unet, UNET_LAYERS + CONVOLUTIONS)]
    second = getattr(pipeline, "text_encoder_2", None)
    if second is None:
        networks.append(("lora_te_text_model_", pipeline.text_encoder, TEXT_LAYERS))
    else:
        networks.append(("lora_te1_text_model_", pipeline.text_encoder, TEXT_LAYERS))
        networks.append(("lora_te2_text_model_", second, TEXT_LAYERS))
        originals = original_names(UNetConfig.from_dict(pipeline.unet.config))
    for prefix, network, names in networks:
        for name, weight in layers(network, names):
            name = name.removeprefix("text_model.")  # as transformers had it before 5
            if second is not None and network is pipeline.unet:
                name = original_name(name, originals)
            rank = 2 + len(weights) % 3
            down = torch.randn(rank, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
            up = torch.randn(len(weight), rank, *[1] * (weight.ndim - 2), generator=generator) / rank**0.5
            key = prefix + name.replace(".", "_")
            weights |= {f"{key}.lora_down.weight": down.half(), f"{key}.lora_up.weight": up.half()}
            weights[f"{key}.alpha"] = torch.tensor(1.0 + rank / 2)
    save_file(weights, path)


def save_old(path: Path, source: Path) -> None:
    """The file of `save_peft` in the names of diffusers before peft, without alphas."""
    renamed = {}
    for key, weight in load_file(source).items():
        key = key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
        for side in ("q", "k", "v", "out"):
            for attention in ("attn1", "attn2"):
                key = key.replace(f"{attention}.to_{side}.lora", f"{attention}.processor.to_{side}_lora")
                key = key.replace(f"{attention}.to_{side}.0.lora", f"{attention}.processor.to_{side}_lora")
            key = key.replace(f"self_attn.{side}_proj.lora", f"self_attn.{side}_proj.lora_linear_layer")
        renamed[key.replace("fc1.lora", "fc1.lora_linear_layer").replace("fc2.lora", "fc2.lora_linear_layer")] = weight
    save_file(renamed, path)


@pytest.fixture(scope="module")
def loras(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of them."""
    folder = tmp_path_factory.mktemp("loras")
    save_peft(tiny_model, folder / "new.safetensors")
    save_old(folder / "old.safetensors", folder / "new.safetensors")
    (folder / "more").mkdir()
    save_kohya(tiny_model, folder / "more" / "kohya.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def adapters(model: Model, loras: Path) -> Adapters:
    return Adapters(model, loras)


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path, loras: Path) -> Pipeline:
    return Pipeline(load_model(tiny_model), loras=loras)


def outputs(unet: Any, text_encoder: Any) -> list[Tensor]:
    """Of the networks, ours or diffusers', for inputs of a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 16, 32, generator=generator)
    ids = torch.randint(0, 500, (2, 16), generator=generator)
    with torch.inference_mode():
        made = unet(x, torch.tensor([30.0, 700.0]), text), text_encoder(ids)
    return [output if isinstance(output, Tensor) else output[0] for output in made]


@pytest.mark.parametrize("name", ["new", "more/kohya"])
def test_networks_equal_diffusers(tiny_model: Path, adapters: Adapters, loras: Path, name: str) -> None:
    adapted = adapters.adapt(adapters.pin([Lora(name, 0.7)]))
    pipeline = library(tiny_model)
    plain = outputs(pipeline.unet, pipeline.text_encoder)
    pipeline.load_lora_weights(loras / f"{name}.safetensors", adapter_name="it")
    pipeline.set_adapters(["it"], [0.7])
    ours, theirs = outputs(adapted.unet, *adapted.text_encoders), outputs(pipeline.unet, pipeline.text_encoder)
    for our, their, without in zip(ours, theirs, plain, strict=True):
        assert relative_error(our, their) < 1e-4
        assert relative_error(without, their) > 0.1


def test_picture_of_two_equals_diffusers(tiny_model: Path, pipeline: Pipeline, loras: Path) -> None:
    asked = Request("a red apple", seed=7, steps=4, guidance=3, loras=(Lora("new", 0.6), Lora("more/kohya", -0.4)))
    (ours,) = pipeline.generate([asked])
    theirs = library(tiny_model)
    theirs.load_lora_weights(loras / "new.safetensors", adapter_name="one")
    theirs.load_lora_weights(loras / "more" / "kohya.safetensors", adapter_name="two")
    theirs.set_adapters(["one", "two"], [0.6, -0.4])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    image = theirs(asked.prompt, latents=noise, num_inference_steps=4, guidance_scale=3, height=16, width=16).images[0]
    assert psnr(ours.image, image) >= 50
    (plain,) = pipeline.generate([Request("a red apple", seed=7, steps=4, guidance=3)])
    assert psnr(plain.image, image) < 30


def test_picture_of_xl_equals_diffusers(tmp_path: Path) -> None:
    model = save_model("xl", tmp_path / "xl")
    save_kohya(model, tmp_path / "kohya.safetensors")
    size = {"seed": 7, "steps": 3, "guidance": 3, "width": 16, "height": 16}
    with_lora = Request("a red apple", loras=(Lora("kohya", 0.5),), **size)
    ours, plain = open_pipeline(model, loras=tmp_path).generate([with_lora, replace(with_lora, loras=())])
    theirs = library(model)
    theirs.load_lora_weights(tmp_path / "kohya.safetensors", adapter_name="it")
    theirs.set_adapters(["it"], [0.5])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    image = theirs("a red apple", latents=noise, num_inference_steps=3, guidance_scale=3, height=16, width=16).images[0]
    assert psnr(ours.image, image) >= 50
    assert psnr(plain.image, image) < 30


def test_live_equals_merged(model: Model, adapters: Adapters) -> None:
    pinned = adapters.pin([Lora("new", 0.6), Lora("more/kohya", -0.4)])
    live, merged = adapters.adapt(pinned), load_model(model.path)
    for network, parts in adapters.parts(pinned).items():
        target = {"unet": merged.unet, "text_encoder": merged.text_encoders[0]}[network]
        for layer, added in parts.items():
            weight = target.get_submodule(layer).weight
            weight.data += delta(added, weight)
            beside = {"unet": live.unet, "text_encoder": live.text_encoders[0]}[network].get_submodule(layer)
            assert relative_error(beside.weight, weight) < 1e-6
    ours, theirs = outputs(live.unet, *live.text_encoders), outputs(merged.unet, *merged.text_encoders)
    for one, other in zip(ours, theirs, strict=True):
        assert relative_error(one, other) < 1e-5


def test_older_names_are_the_same_layers(adapters: Adapters) -> None:
    new, old = (dict(adapters.terms(lora)) for lora in adapters.pin([Lora("new"), Lora("old.safetensors")]))
    assert new.keys() == old.keys()
    assert all(torch.equal(term.up @ term.down.flatten(1), old[place].up @ old[place].down.flatten(1))
               for place, term in new.items())  # fmt: skip
    assert {term.scale for term in old.values()} == {1.0}


def test_pictures_without_stay_as_they_were(tiny_model: Path, pipeline: Pipeline) -> None:
    plain = Request("a red apple", seed=3, steps=2)
    (before,) = Pipeline(load_model(tiny_model)).generate([plain])
    with_lora, with_none = (replace(plain, loras=(Lora("new", weight),)) for weight in (1, 0))
    first, _, last, none = pipeline.generate([plain, with_lora, plain, with_none])
    assert first.png() == last.png() == before.png()
    assert none.image.tobytes() == before.image.tobytes()
    assert "loras" not in to_json(before.request)


def test_weights_of_text_and_unet(pipeline: Pipeline) -> None:
    def picture(*lora: Any) -> bytes:
        (made,) = pipeline.generate([Request("a red apple", steps=1, loras=(Lora(*lora),))])
        return made.image.tobytes()

    assert len({picture("new", 1), picture("new", 1, 0), picture("new", 0, 1), picture("new", 0)}) == 4
    assert picture("new", 0.5) == picture("new", 0.5, 0.5)


def test_picture_says_its_loras(pipeline: Pipeline, tiny_model: Path, loras: Path, tmp_path: Path) -> None:
    (tagged,) = pipeline.generate([Request("a <lora:new:0.5>red apple<lora:more/kohya:0.2:1>", seed=1)])
    assert tagged.request.prompt == "a red apple"
    assert [lora[:3] for lora in tagged.request.loras] == [("new", 0.5, 0.5), ("more/kohya", 1.0, 0.2)]
    assert "a red apple<lora:new:0.5><lora:more/kohya:0.2:1>\n" in tagged.texts["parameters"]
    hashes = split_parameters(tagged.texts["parameters"])[2]["Lora hashes"]
    assert re.fullmatch("new: [0-9a-f]{12}, more/kohya: [0-9a-f]{12}", hashes)
    assert len(json.loads(tagged.texts["oboro"])["request"]["loras"][0][3]) == 64
    for request in (request_of(tagged.texts), read_parameters(tagged.texts["parameters"]), tagged.request):
        (again,) = pipeline.generate([request])
        assert again.png() == tagged.png()
    save_kohya(tiny_model, tmp_path / "new.safetensors")
    with pytest.raises(ValueError, match="is not the LoRA that was meant"):
        Pipeline(load_model(tiny_model), loras=tmp_path).generate([tagged.request])


def test_command(tiny_model: Path, loras: Path, tmp_path: Path, pipeline: Pipeline) -> None:
    options = ["--model", str(tiny_model), "--loras", str(loras), "--lora", "new:0.5", "--lora", "more/kohya"]
    assert main(["a red apple", *options, "--out", str(tmp_path / "a.png")]) == 0
    (expected,) = pipeline.generate([Request("a red apple", loras=(Lora("new", 0.5), Lora("more/kohya")))])
    assert (tmp_path / "a.png").read_bytes() == expected.png()


@pytest.mark.parametrize(
    ("prompt", "rest", "found"),
    [
        ("a cat", "a cat", []),
        ("a cat <lora:ink:0.8>", "a cat ", [Lora("ink", 0.8, 0.8)]),
        ("<lora:ink>", "", [Lora("ink", 1.0, 1.0)]),
        ("a<lora:ink:.5:1>b<lora:a b:-2>", "ab", [Lora("ink", 1.0, 0.5), Lora("a b", -2.0, -2.0)]),
        ("1 < 2, <lora>, <b:c>", "1 < 2, <lora>, <b:c>", []),
    ],
)
def test_tags(prompt: str, rest: str, found: list[Lora]) -> None:
    text, loras = split_loras(prompt)
    assert text == rest
    assert [lora._replace(text_weight=lora.text_weight or lora.weight) for lora in loras] == found


def test_json() -> None:
    request = Request("a", loras=(Lora("ink", 0.5), Lora("b")))
    assert from_json(json.loads(json.dumps(to_json(request)))) == request
    assert from_json({"prompt": "a", "loras": [["ink", 0.5], ["b"]]}) == request
    for wrong in ("ink", ["ink"], [[1]], [[]], 5):
        with pytest.raises(ValueError, match=r'expected a list as \[\["name", 0.8\]\]'):
            from_json({"prompt": "a", "loras": wrong})


KEY = "lora_unet_mid_block_attentions_0_proj_in"
DOWN, UP = torch.zeros(2, 64, 1, 1), torch.zeros(64, 2, 1, 1)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({f"{KEY}.dora_scale": UP}, "is a DoRA; only plain LoRA files are read here"),
        ({f"{KEY}.hada_w1_a": UP}, "is a LoHa"),
        ({f"{KEY}.lokr_w1": UP}, "is a LoKr"),
        ({f"{KEY}.lora_mid.weight": UP}, "is a LoCon in Tucker's form"),
        ({"unet.conv_in.weight": UP}, "is no LoRA: it has unet.conv_in.weight"),
        ({}, "is empty"),
        ({f"{KEY}.lora_down.weight": DOWN}, "no two matrices"),
        ({f"{KEY}.lora_down.weight": DOWN, f"{KEY}.lora_up.weight": UP[:, :1].clone()}, "no two matrices"),
        ({f"{KEY}.lora_down.weight": DOWN[:, :5].clone(), f"{KEY}.lora_up.weight": UP}, f"of model: {KEY}"),
        ({"lora_unet_x.lora_down.weight": DOWN, "lora_unet_x.lora_up.weight": UP}, "this one has no lora_unet_x"),
    ],
)
def test_files_that_are_refused(model: Model, tmp_path: Path, weights: dict[str, Tensor], said: str) -> None:
    save_file(weights, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=r"\.$") as mistake:
        Adapters(model, tmp_path).pin([Lora("bad")])
    assert said in str(mistake.value)


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        (Lora("nothing"), "There is no LoRA 'nothing' in "),
        (Lora("../new"), "There is no LoRA '../new'"),
        (Lora("/etc/passwd"), "There is no LoRA '/etc/passwd'"),
        (Lora("new", float("nan")), "has the weight nan; expected -100 to 100"),
        (Lora("new", 101), "has the weight 101"),
        (Lora("new", True), "has the weight True"),
        (Lora("pickle"), "is a pickle"),
    ],
)
def test_requests_that_are_refused(pipeline: Pipeline, loras: Path, lora: Lora, said: str) -> None:
    (loras / "pickle.safetensors").write_bytes(b"\x80\x04\x95" + bytes(600))
    with pytest.raises(ValueError, match=r"\.$") as mistake:
        pipeline.generate([Request("a", loras=(lora,))])
    assert said in str(mistake.value)


def test_no_folder(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="no folder of LoRAs is given; give it by --loras"):
        open_pipeline(tiny_model).generate([Request("a <lora:ink:1>")])

"""The towers of CLIP hold transformers' and open_clip's weights and give their outputs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import open_clip
import pytest
import torch
import transformers
from open_clip.model import CLIP as OpenCLIP
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from safetensors.torch import save_file
from torch import Tensor

from clip.image import ImageConfig, ImageEncoder
from clip.model import CLIP
from clip.openclip import from_open_clip, to_open_clip
from clip.pretrained import (
    LEGACY_EOS,
    clip_from_folder,
    from_transformers,
    save_clip,
    save_open_clip,
    save_text_encoder,
    text_encoder_from_folder,
    to_transformers,
)
from clip.text import TextConfig, TextEncoder

Module = TypeVar("Module", bound=torch.nn.Module)

VOCAB, LENGTH = 99, 16
END = VOCAB - 1
TEXT = TextConfig(VOCAB, LENGTH, width=32, layers=3, heads=2, mlp_width=128, projection=24, eos_token_id=END)
IMAGE = ImageConfig(image_size=16, patch_size=4, width=64, layers=2, heads=1, mlp_width=256, projection=24)

GOLDEN_TOKENS = [-0.5665, 1.4818, -0.0453, 1.3743]
GOLDEN_LOGITS = [-1.3764, -2.0244, -2.5389, -0.1968]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def shaken(module: Module) -> Module:
    """Every parameter random, biases and norms too: what starts as 0 or 1 would hide a mix-up."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.eval()


def some_ids(batch: int = 4) -> Tensor:
    ids = torch.randint(0, END, (batch, LENGTH))
    for row, end in zip(ids, (1, 5, 9, LENGTH - 1), strict=False):
        row[end:] = END  # padded with the end token: the first one counts
    return ids


def some_images() -> Tensor:
    return torch.rand(2, 3, 16, 16) * 2 - 1


def clip_pixels(images: Tensor, config: ImageConfig = IMAGE) -> Tensor:
    """[-1, 1] => the pixels that the libraries expect."""
    mean, std = (torch.tensor(moment).view(3, 1, 1) for moment in (config.mean, config.std))
    return ((images + 1) / 2 - mean) / std


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5


def text_config(**changes: object) -> transformers.CLIPTextConfig:
    settings = {
        "vocab_size": VOCAB,
        "max_position_embeddings": LENGTH,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "projection_dim": 24,
        "eos_token_id": END,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    return transformers.CLIPTextConfig(**(settings | changes))


# transformers


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos", [END, LEGACY_EOS])
@torch.no_grad()
def test_text_encoder_equals_clip_text_model(activation: str, eos: int, tmp_path: Path) -> None:
    theirs = shaken(transformers.CLIPTextModel(text_config(hidden_act=activation, eos_token_id=eos)))
    theirs.save_pretrained(tmp_path)
    ours = text_encoder_from_folder(tmp_path)

    ids = some_ids()
    expected = theirs(ids, output_hidden_states=True)
    tokens, pooled = ours(ids)
    assert_same(tokens, expected.last_hidden_state)
    assert_same(pooled, expected.pooler_output)
    # transformers keeps the norm in another place from version to version.
    (norm,) = (module for name, module in theirs.named_modules() if name.endswith("final_layer_norm"))
    for skip in (1, 2):
        tokens, pooled = ours(ids, skip=skip)
        assert_same(tokens, norm(expected.hidden_states[-1 - skip]))
        assert_same(pooled, expected.pooler_output)


@torch.no_grad()
def test_text_encoder_equals_clip_text_model_with_projection(tmp_path: Path) -> None:
    theirs = shaken(transformers.CLIPTextModelWithProjection(text_config()))
    theirs.save_pretrained(tmp_path)
    ours = text_encoder_from_folder(tmp_path)

    ids = some_ids()
    expected = theirs(ids)
    tokens, pooled = ours(ids)
    assert_same(tokens, expected.last_hidden_state)
    assert_same(pooled, expected.text_embeds)


@torch.no_grad()
def test_the_first_end_token_is_pooled_though_higher_ids_follow() -> None:
    """Tokens added by textual inversion lie above the end token: highest-id pooling would go astray there."""
    theirs = shaken(transformers.CLIPTextModel(text_config(eos_token_id=END - 5)))
    ours = TextEncoder(replace(TEXT, projection=None, eos_token_id=END - 5))
    ours.load_state_dict({k.removeprefix("text."): w for k, w in from_transformers(theirs.state_dict()).items()})

    ids = some_ids()
    ids[:, 3] = END - 5
    assert_same(ours(ids).pooled, theirs(ids).pooler_output)


@pytest.mark.parametrize("projection", [None, 24])
@torch.no_grad()
def test_transformers_opens_a_saved_text_encoder(projection: int | None, tmp_path: Path) -> None:
    ours = shaken(TextEncoder(replace(TEXT, projection=projection)))
    save_text_encoder(ours, tmp_path)
    theirs, info = transformers.CLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]

    ids = some_ids()
    assert_same(ours(ids).tokens, theirs(ids).last_hidden_state)
    again = text_encoder_from_folder(tmp_path)
    assert again.config == ours.config
    assert torch.equal(again(ids).pooled, ours(ids).pooled)
    if projection:
        projected = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path)
        assert_same(ours(ids).pooled, projected(ids).text_embeds)


@torch.no_grad()
def test_old_weight_files_open(tmp_path: Path) -> None:
    """Those of Stable Diffusion 1.x are in float16 and hold the positions' numbers as well."""
    ours = shaken(TextEncoder(replace(TEXT, projection=None))).half()
    save_text_encoder(ours, tmp_path)
    weights = to_transformers({f"text.{key}": weight for key, weight in ours.state_dict().items()})
    weights["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    save_file({k: w.contiguous() for k, w in weights.items()}, tmp_path / "model.safetensors")

    again, ids = text_encoder_from_folder(tmp_path), some_ids()
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert torch.equal(again(ids).tokens, ours.float()(ids).tokens)


@torch.no_grad()
def test_clip_equals_clip_model_both_ways(tmp_path: Path) -> None:
    ours = shaken(CLIP(TextEncoder(TEXT), ImageEncoder(replace(IMAGE, mean=(0.5, 0.4, 0.3)))))
    save_clip(ours, tmp_path / "ours")
    theirs, info = transformers.CLIPModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours" / "preprocessor_config.json").rename(tmp_path / "theirs" / "preprocessor_config.json")

    ids, images = some_ids(), some_images()
    expected = theirs(input_ids=ids, pixel_values=clip_pixels(images, ours.image.config))
    again = clip_from_folder(tmp_path / "theirs")
    assert again.image.config == ours.image.config
    assert again.text.config == ours.text.config
    for clip in (ours, again):
        assert_same(clip.encode_text(ids), expected.text_embeds)
        assert_same(clip.encode_image(images), expected.image_embeds)
        assert_same(clip.similarity(images, ids), expected.logits_per_image)


# open_clip


PLAIN: dict[str, Any] = {"context_length": LENGTH, "vocab_size": VOCAB, "width": 32, "heads": 2, "layers": 3}
PATCHES: dict[str, Any] = {"image_size": 16, "patch_size": 4, "width": 64, "layers": 2}
CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True, "ls_init_value": 0.1}


@pytest.mark.parametrize(
    ("model", "text", "image"),
    [
        ({"quick_gelu": True}, {}, {}),
        ({"quick_gelu": False}, {}, {}),
        ({}, {"no_causal_mask": True, "pool_type": "last"}, CLIPA),
        ({"custom_text": True}, {"proj_bias": True, "ls_init_value": 0.1}, {"norm_kwargs": {"eps": 1e-3}}),
    ],
)
@torch.no_grad()
def test_clip_equals_open_clip_both_ways(
    model: dict[str, Any], text: dict[str, Any], image: dict[str, Any], tmp_path: Path
) -> None:
    text, image = PLAIN | text, PATCHES | image
    custom = model.get("custom_text", False)
    kind = CustomTextCLIP if custom else OpenCLIP
    theirs = shaken(kind(24, CLIPVisionCfg(**image), CLIPTextCfg(**text), quick_gelu=model.get("quick_gelu", False)))
    asked = {"embed_dim": 24, "text_cfg": text, "vision_cfg": image, **model}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": asked}))
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    ours = clip_from_folder(tmp_path)

    ids, images = some_ids(), some_images()
    assert_same(ours.text(ids).pooled, theirs.encode_text(ids))
    assert_same(ours.image(images), theirs.encode_image(clip_pixels(images)))
    assert_same(ours.similarity(images, ids), theirs.get_logits(clip_pixels(images), ids)[0])
    assert_same(text_encoder_from_folder(tmp_path)(ids).pooled, theirs.encode_text(ids))

    back = to_open_clip(ours.state_dict(), custom_text=custom)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(weight, back[key]) for key, weight in theirs.state_dict().items())
    assert from_open_clip(back).keys() == ours.state_dict().keys()


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ({}, {}),
        ({"mask": "full", "pool": "last", "projection_bias": True, "mlp_width": 119},
         {"pool": "average", "norm_in": False, "layer_scale": True}),
        ({"pool": "argmax", "class_token": True, "norm_eps": 1e-3}, {"layer_scale": True, "mlp_width": 100}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
@torch.no_grad()
def test_open_clip_opens_a_saved_clip(
    text: dict[str, Any], image: dict[str, Any], activation: str, tmp_path: Path
) -> None:
    texts, pictures = (replace(config, activation=activation) for config in (TEXT, IMAGE))
    ours = shaken(CLIP(TextEncoder(replace(texts, **text)), ImageEncoder(replace(pictures, **image))))
    save_open_clip(ours, tmp_path)
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    ids, images = some_ids(), some_images()
    assert_same(ours.text(ids).pooled, theirs.encode_text(ids))
    assert_same(ours.image(images), theirs.encode_image(clip_pixels(images)))
    again = clip_from_folder(tmp_path)
    assert (again.text.config, again.image.config) == (ours.text.config, ours.image.config)


@pytest.mark.parametrize("changes", [{"mask": "full"}, {"pool": "last"}, {"class_token": True}, {"layer_scale": True}])
def test_what_clip_of_transformers_has_not_is_not_saved_as_one(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))} = "):
        save_text_encoder(TextEncoder(replace(TEXT, **changes)), tmp_path)


# Our own


@torch.no_grad()
def test_golden_outputs() -> None:
    clip = CLIP(TextEncoder(TEXT), ImageEncoder(IMAGE))
    ids, images = some_ids(), some_images()
    tokens, logits = clip.text(ids).tokens[1, :2, :2].flatten(), clip.similarity(images, ids)[0]
    torch.testing.assert_close(tokens, torch.tensor(GOLDEN_TOKENS), atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, torch.tensor(GOLDEN_LOGITS), atol=1e-4, rtol=0)


@torch.no_grad()
def test_text_is_causal_and_may_be_short() -> None:
    encoder, ids = TextEncoder(TEXT), some_ids()
    whole = encoder(ids).tokens
    torch.testing.assert_close(encoder(ids[:, :7]).tokens, whole[:, :7])


def test_every_parameter_gets_a_gradient() -> None:
    clip = CLIP(TextEncoder(TEXT), ImageEncoder(IMAGE))
    logits = clip.similarity(some_images(), some_ids(2))
    torch.nn.functional.cross_entropy(logits, torch.arange(2)).backward()
    assert [name for name, parameter in clip.named_parameters() if parameter.grad is None] == []


def test_the_stream_keeps_its_variance_with_depth() -> None:
    """The initialisation's purpose: what 24 blocks add is of the order of what came in, not 24 times it."""
    encoder = TextEncoder(replace(TEXT, width=128, heads=2, mlp_width=512, layers=24))
    x = torch.randn(2, LENGTH, 128)
    assert 1 < encoder.transformer(x).var().item() < 4


def test_users_mistakes_are_named(tmp_path: Path) -> None:
    encoder = TextEncoder(TEXT)
    with pytest.raises(ValueError, match="cut it to 16"):
        encoder(torch.zeros(1, LENGTH + 1, dtype=torch.long))
    with pytest.raises(ValueError, match="skip 3"):
        encoder(some_ids(), skip=3)
    with pytest.raises(ValueError, match="heads 3"):
        TextEncoder(replace(TEXT, heads=3))
    with pytest.raises(ValueError, match="'tanh' is unknown"):
        TextEncoder(replace(TEXT, activation="tanh"))
    with pytest.raises(ValueError, match="multiple of 5"):
        replace(IMAGE, patch_size=5)
    with pytest.raises(ValueError, match=r"\[B, 3, 16, 16\] expected"):
        ImageEncoder(IMAGE)(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="projects to None"):
        CLIP(TextEncoder(replace(TEXT, projection=None)), ImageEncoder(IMAGE))


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        text_encoder_from_folder(tmp_path)
    save_text_encoder(TextEncoder(TEXT), tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"

    sound = config.read_text()
    config.write_text(sound.replace('"hidden_size": 32', '"hidden_size": 64'))
    with pytest.raises(ValueError, match="do not fit its configuration"):
        text_encoder_from_folder(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        text_encoder_from_folder(tmp_path)
    config.write_text(sound)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        text_encoder_from_folder(tmp_path)
    save_file({"unet.weight": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match=r"'unet\.weight' is not of a CLIP"):
        text_encoder_from_folder(tmp_path)

    model = {"embed_dim": 24, "text_cfg": {}, "vision_cfg": {"timm_model_name": "convnext_base"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    with pytest.raises(ValueError, match="timm_model_name = 'convnext_base'"):
        clip_from_folder(tmp_path)

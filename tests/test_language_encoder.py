"""Language models as text encoders: alone and after CLIP, trained, saved, sampled by, and refused by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import randomize, relative_error
from recipes import write_recipe

from clip.language import SHIPPED, PromptModel
from clip.language_encoder import (
    EncoderSettings,
    LanguageEncoder,
    LanguageTokenizer,
    language_encoder,
    save_language_encoder,
)
from diffusion import convert, sample
from diffusion.checkpoint import load_model, save_model
from diffusion.chunks import chunks
from diffusion.conditioning import LANGUAGE, PLAIN, Conditioning, join
from diffusion.engine import accelerate
from diffusion.files import Files
from diffusion.folder import load_language_encoder
from diffusion.model import Model
from diffusion.pipeline import Pipeline
from diffusion.request import Request
from diffusion.single_file import save_single_file
from diffusion.unet import UNet, UNetConfig
from diffusion.weights import write_safetensors
from train import __main__ as whole
from train import denoiser
from train.prepared import embed

TEXTS = ["a red apple, 3D", "", "赤いリンゴ"]
ARMS = {"language": "clip = false\nskip = 1\nlength = 12", "both": 'length = 12\nmask = "full"'}


@pytest.fixture(scope="module")
def prompts() -> PromptModel:
    return PromptModel.from_folder(SHIPPED)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny runs of `ARMS`, which share what the earlier stages made."""
    root = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(root)
    tables = {"clip": ""} | {arm: f"[denoiser.language]\n{table}\n" for arm, table in ARMS.items()}
    for arm, table in tables.items():
        path = root / f"{arm}.toml"
        path.write_text(recipe.read_text().replace("[denoiser.model]", f"{table}[denoiser.model]"))
        if arm != "clip":
            shutil.copytree(root / "clip/model", root / arm / "model")
        command = whole if arm == "clip" else denoiser
        assert command.main([str(path), "--out", str(root / arm), "--precision", "no"]) == 0
    return root


@torch.no_grad()
@pytest.mark.parametrize("skip", [0, 1])
def test_embeddings_are_the_hidden_states_that_transformers_gives(prompts: PromptModel, skip: int) -> None:
    from transformers import AutoModel

    tokenizer, encoder = language_encoder(prompts, EncoderSettings(skip=skip))
    ids = tokenizer(TEXTS)  # [3, 32]
    valid = encoder.valid(ids)
    library = AutoModel.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    output = library(ids, attention_mask=valid.long(), output_hidden_states=True)
    states = output.hidden_states[-1] if skip == 0 else library.norm(output.hidden_states[-1 - skip])
    assert relative_error(encoder(ids).tokens, states * valid[..., None]) < 1e-5
    lengths = [len(tokenizer.encode(text)) + 2 for text in TEXTS]
    assert valid.sum(dim=1).tolist() == lengths  # though start, end and padding are one id
    assert tokenizer.start == tokenizer.end == tokenizer.pad


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_other_kinds_read_texts_too_and_are_saved_with_their_settings(
    prompts: PromptModel, tmp_path: Path, kind: str
) -> None:
    import transformers

    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=2048, n_positions=40, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
        library = transformers.GPT2LMHeadModel(config).eval()
    else:  # without a start token
        config = transformers.T5Config(vocab_size=2048, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
        library = transformers.T5EncoderModel(config).eval()
    library.save_pretrained(tmp_path / kind)
    prompts.tokenizer.save(str(tmp_path / kind / "tokenizer.json"))
    tokenizer, encoder = language_encoder(PromptModel.from_folder(tmp_path / kind), EncoderSettings(length=20))
    ids = tokenizer(TEXTS)
    valid = encoder.valid(ids)
    output = library(ids, attention_mask=valid.long(), output_hidden_states=True)
    tokens = encoder(ids).tokens
    assert relative_error(tokens, output.hidden_states[-1] * valid[..., None]) < 1e-5

    save_language_encoder(encoder, tokenizer, tmp_path / "again")
    again, other = load_language_encoder(Files(tmp_path / "again"))
    assert torch.equal(other(again(TEXTS)).tokens, tokens)


@torch.no_grad()
def test_padding_changes_nothing_and_the_full_mask_sees_what_follows(prompts: PromptModel) -> None:
    for mask, sees in ((None, False), ("full", True)):
        long, short = (language_encoder(prompts, EncoderSettings(length=n, mask=mask)) for n in (32, 16))
        tokens, cut = (encoder(tokenizer(TEXTS)).tokens for tokenizer, encoder in (long, short))
        torch.testing.assert_close(tokens[:, :16], cut)
        assert not tokens[:, 16:].any()
        assert torch.equal(tokens[0, 0], tokens[2, 0]) != sees


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (EncoderSettings(length=65), "length is 65: .* 3 to 64"),
        (EncoderSettings(skip=4), "skip is 4: .* 0 to 3"),
        (EncoderSettings(mask="half"), "mask 'half' is unknown"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_cannot_be_are_named(prompts: PromptModel, settings: EncoderSettings, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        language_encoder(prompts, settings)


def test_texts_stand_apart_in_columns_of_their_own() -> None:
    a, b = torch.ones(2, 3, 4), 2 * torch.ones(2, 5, 1)
    joined = join([a, b], LANGUAGE)  # [2, 3 + 5, 4 + 1]
    assert joined[0].sum(dim=1).tolist() == [4, 4, 4, 2, 2, 2, 2, 2]
    assert joined[0, :, 4].tolist() == [0, 0, 0, 2, 2, 2, 2, 2]
    assert join([a, a], PLAIN).shape == (2, 3, 8)


@torch.no_grad()
def test_projected_text_is_that_of_diffusers(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = UNetConfig(
        sample_size=8, block_out_channels=(16, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1, attention_head_dim=2,
        norm_num_groups=8, cross_attention_dim=24, encoder_hid_dim_type="text_proj", encoder_hid_dim=20,
    )  # fmt: skip
    unet = UNet(config).eval()
    randomize(unet)
    theirs = UNet2DConditionModel.from_config(config.to_dict()).eval()
    theirs.load_state_dict(unet.state_dict())
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([7.0, 7.0]), torch.randn(2, 5, 20)
    expected = theirs(x, t, text).sample
    assert relative_error(unet(x, t, text), expected) < 1e-5
    twin = accelerate(unet)
    assert relative_error(twin(x, t, twin.context(Conditioning(text))), expected) < 1e-5


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type='image_proj' is not supported"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim=None is not supported"),
    ],
)
def test_other_projections_are_refused(said: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig.from_dict(said)


@pytest.mark.parametrize("arm", ARMS)
def test_a_trained_folder_opens_samples_and_is_saved_the_same(
    runs: Path, tmp_path: Path, arm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs / arm / "model"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "LanguagePipeline"
    assert index["language_model"] == ["transformers", "LlamaForCausalLM"]
    assert ("text_encoder" in index) == (arm == "both")

    model = load_model(folder, None, others=None)
    made = model.tokenizers, model.text_encoders, model.unet, model.autoencoder, model.noise, model.defaults
    save_model(tmp_path / "again", *made, model.reading)
    saved = [path for path in (tmp_path / "again").rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
    assert len(saved) > 10
    for path in saved:
        assert path.read_bytes() == (folder / path.relative_to(tmp_path / "again")).read_bytes(), path.name

    out = tmp_path / "out"
    assert sample.main(["a (red:1.3) circle", "--model", str(folder), "--out", str(out)]) == 0
    prompt = "a red circle BREAK a blue square"
    pictures = [next(Pipeline(load_model(f)).generate([Request(prompt)])) for f in (folder, tmp_path / "again")]
    assert pictures[0].image.tobytes() == pictures[1].image.tobytes()


@torch.no_grad()
def test_the_unet_alone_opens_in_diffusers(runs: Path) -> None:
    from diffusers import UNet2DConditionModel

    theirs = UNet2DConditionModel.from_pretrained(runs / "both" / "model" / "unet").float()
    model = load_model(runs / "both" / "model")
    text = embed(model.text_encoders, model.tokenizers, model.reading, ["a red circle"])
    x = torch.randn(1, 4, 8, 8)
    assert text.shape == (1, 16 + 12, 32 + 128)
    assert relative_error(model.unet(x, torch.tensor([9.0]), text), theirs(x, 9, text).sample) < 1e-5


@pytest.mark.parametrize(
    "parts", [["a ", "red", " apple"], ["a", " red", " apple"], ["赤い", "リンゴ"], ["", "a red apple", ""], ["\ud83c"]]
)
def test_parts_of_a_text_have_the_tokens_that_it_has_whole(prompts: PromptModel, parts: list[str]) -> None:
    tokenizer, _ = language_encoder(prompts, EncoderSettings())
    found = tokenizer.parts(parts)
    assert len(found) == len(parts)
    assert [token for part in found for token in part] == tokenizer.encode("".join(parts))


def test_weights_leave_the_words_as_they_are(prompts: PromptModel) -> None:
    tokenizer, _ = language_encoder(prompts, EncoderSettings())
    (plain,), (weighed,) = (chunks(text, "a1111", tokenizer) for text in ("a red apple", "a (red:1.3) apple"))
    assert weighed.ids == plain.ids
    assert weighed.weights == [1.3 if tokenizer.decode([token]) == "red" else 1.0 for token in plain.ids]


def test_a_converted_folder_is_checked(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [str(runs / "both" / "model"), str(tmp_path / "again"), "--dtype", "float32", "--check"]
    assert convert.main(argv) == 0
    assert "language_model: largest difference" in capsys.readouterr().out


def test_the_language_model_says_its_part(runs: Path) -> None:
    """Each encoder moves the prediction, by its own words."""
    model = load_model(runs / "both" / "model")
    assert isinstance(model.text_encoders[1], LanguageEncoder)
    assert isinstance(model.tokenizers[1], LanguageTokenizer)
    randomize(model.unet)
    reader = Pipeline(model).reader
    request = Pipeline(model).resolve(Request("a (red:1.4) circle"))
    sigmas = torch.linspace(1, 0, request.steps + 1)
    weighed, plain = (reader.prompt(replace(request, prompt=p), sigmas)[0].lines[0][1].tokens[0]
                      for p in (request.prompt, "a red circle"))
    changed = (weighed - plain).abs().sum(dim=1) > 1e-4  # [16 + 12]
    assert changed[:16].any()
    assert changed[16:].any()
    assert not weighed[:16, 32:].any()
    assert not weighed[16:, :32].any()


def test_what_is_clips_alone_is_refused_by_name(runs: Path, tmp_path: Path) -> None:
    model: Model = load_model(runs / "both" / "model")
    with pytest.raises(ValueError, match="reads texts by a language model, for which a single file has no place"):
        save_single_file(tmp_path / "one.safetensors", model)
    write_safetensors(tmp_path / "cat.safetensors", {"emb_params": torch.zeros(1, 32)})
    with pytest.raises(ValueError, match="Embeddings are vectors of CLIP's, and model has a language model"):
        Pipeline(model, embeddings=tmp_path).resolve(Request("a cat"))
    with pytest.raises(ValueError, match="syntax comfy is none that a language model reads; choose a1111 or plain"):
        Pipeline(model).resolve(Request("a cat", prompt_syntax="comfy"))
    path = runs / "both" / "model" / "model_index.json"
    (runs / "both" / "model" / "SHA256SUMS").unlink()
    path.write_text(path.read_text().replace("LanguagePipeline", "StableDiffusionPipeline"))
    with pytest.raises(ValueError, match=r"is a StableDiffusionPipeline of .*: a LanguagePipeline, and no other"):
        load_model(runs / "both" / "model")

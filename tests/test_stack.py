"""The Transformer stack as GPT-2, LLaMA, T5's encoder and open_clip's text towers: their weights in and out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from networks import randomize, starved

from benchmarks.stack import CASES, TOLERANCE, difference, open_clip_models
from clip.language_model import LanguageConfig, LanguageModel, Sampling, generate
from clip.openclip import open_clip_text_config
from clip.positions import Relative, Rotary
from clip.pretrained_language import language_model_from_folder, save_language_model
from clip.transformer import Cache, TransformerConfig

VOCAB, END = 61, 60
SMALL = TransformerConfig(width=32, layers=2, heads=4, mlp_width=48, activation="gelu_tanh")
LLAMA_STACK = replace(
    SMALL, activation="swiglu", norm="rms", positions=Rotary(length=64), attention_bias=False, mlp_bias=False
)
GPT2 = LanguageConfig(VOCAB, 64, SMALL, end_token_ids=(END,))
LLAMA = LanguageConfig(VOCAB, 64, LLAMA_STACK, "untied", start_token_id=1, end_token_ids=(END, 3))
GROUPED = replace(LLAMA, stack=replace(LLAMA_STACK, kv_heads=2, head_width=12), head="tied")
LLAMA3 = replace(LLAMA, stack=replace(LLAMA_STACK, positions=Rotary(5e5, "llama3", factor=8.0, length=16)))
DYNAMIC = replace(LLAMA, stack=replace(LLAMA_STACK, positions=Rotary(1e4, "dynamic", factor=4.0, length=16)), length=16)
YARN = Rotary(1e4, "yarn", factor=2.0, length=16, low=1.0, high=32.0, magnitude=1.0693)
T5_STACK = replace(
    LLAMA_STACK, activation="geglu", mask="full", norm_eps=1e-6, positions=Relative(), attention_scale=1.0
)
T5 = LanguageConfig(VOCAB, 512, T5_STACK, "none", end_token_ids=(1,))
MODELS = {"gpt2": GPT2, "llama": LLAMA, "grouped": GROUPED, "llama3": LLAMA3, "dynamic": DYNAMIC}


def made(config: LanguageConfig) -> LanguageModel:
    model = LanguageModel(config)
    randomize(model)
    return model.eval()


@pytest.mark.parametrize("size", ["small", "medium"])
@pytest.mark.parametrize("name", CASES)
def test_output_is_the_librarys(name: str, size: str) -> None:
    assert difference(name, size) <= TOLERANCE


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (GPT2, "GPT2LMHeadModel"),
        (replace(GPT2, head="untied"), "GPT2LMHeadModel"),
        (replace(GPT2, head="none"), "GPT2Model"),
        (LLAMA, "LlamaForCausalLM"),
        (GROUPED, "LlamaForCausalLM"),
        (LLAMA3, "LlamaForCausalLM"),
        (replace(LLAMA, stack=replace(LLAMA_STACK, positions=YARN)), "LlamaForCausalLM"),
        (replace(LLAMA, head="none"), "LlamaModel"),
        (T5, "T5EncoderModel"),
        (replace(T5, stack=replace(T5_STACK, activation="relu", head_width=12)), "T5EncoderModel"),
    ],
)
@torch.no_grad()
def test_transformers_opens_what_is_saved(config: LanguageConfig, kind: str, tmp_path: Path) -> None:
    model, ids = made(config), torch.randint(0, VOCAB, (2, 12))
    save_language_model(model, tmp_path)
    theirs, info = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not {key: value for key, value in info.items() if value}
    out = theirs(ids)
    found = model.encode(ids) if config.head == "none" else model(ids)
    expected = out.last_hidden_state if config.head == "none" else out.logits
    assert (found - expected).abs().max() / expected.abs().max() < TOLERANCE

    again = language_model_from_folder(tmp_path)
    assert again.config == config
    assert all(torch.equal(weight, again.state_dict()[key]) for key, weight in model.state_dict().items())


# the cache


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_sampling_with_the_cache_equals_sampling_without(name: str) -> None:
    model, ids = made(MODELS[name]), torch.randint(0, END, (3, 10))
    for sampling in (Sampling(temperature=0), Sampling(), Sampling(0.8, top_k=20, top_p=0.9)):
        with_cache, without = (
            generate(model, ids, sampling.chooser((1, 2, 3)), 20, use_cache=use) for use in (True, False)
        )
        assert with_cache == without
    assert any(with_cache)


@pytest.mark.parametrize("name", ["gpt2", "grouped", "llama3"])
@torch.no_grad()
def test_padding_changes_no_text(name: str) -> None:
    model = made(MODELS[name])
    texts = [torch.randint(0, END, (length,)) for length in (3, 9, 6)]
    ids, valid = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, 9 - len(text) :], valid[row, 9 - len(text) :] = text, True
    alone = [generate(model, text[None], Sampling().chooser([i]), 12)[0] for i, text in enumerate(texts)]
    assert generate(model, ids, Sampling().chooser([0, 1, 2]), 12, valid) == alone


@torch.no_grad()
def test_cache_is_filled_in_place_and_piece_by_piece() -> None:
    model, ids = made(GROUPED), torch.randint(0, VOCAB, (2, 12))
    cache = Cache(GROUPED.stack, 2, 12, model.token_embedding.weight)
    place = cache.held.data_ptr()
    pieces = [model(piece, cache=cache) for piece in ids.split((5, 4, 1, 2), dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids))
    assert (cache.length, cache.held.data_ptr()) == (12, place)
    with pytest.raises(AssertionError, match="room for 12"):
        model(ids[:, :1], cache=cache)


# sampling


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7), (0, 0.0), (8, 0.5), (100, 0.99)])
def test_probabilities_are_transformers(top_k: int, top_p: float) -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    steps: list[Any] = [transformers.TemperatureLogitsWarper(0.7)]
    steps += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    steps += [transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    expected = logits
    for step in steps:
        expected = step(None, expected)
    torch.testing.assert_close(Sampling(0.7, top_k, top_p).probabilities(logits), expected.softmax(dim=-1))


def test_ends_and_limits() -> None:
    model = made(GPT2)
    script = iter([[5, END], [7, 8], [END, 9], [1, 1]])
    new = generate(model, torch.tensor([[1], [2]]), lambda _: torch.tensor(next(script)), most=4)
    assert new == [[5, 7], []]
    assert len(generate(model, torch.ones(1, 60, dtype=torch.long), lambda _: torch.tensor([2]), 10)[0]) == 4
    with pytest.raises(ValueError, match="encodes texts"):
        generate(made(T5), torch.ones(1, 4, dtype=torch.long), Sampling().chooser([0]), 4)
    with pytest.raises(ValueError, match="cut it to 64"):
        model(torch.ones(1, 65, dtype=torch.long))


@pytest.mark.parametrize("changes", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 1.5}, {"top_p": float("nan")}])
def test_bad_sampling_is_named(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        Sampling(**changes)  # type: ignore[arg-type]


# the stack


@pytest.mark.parametrize("config", [GPT2, GROUPED, T5], ids=["gpt2", "grouped", "t5"])
def test_every_parameter_learns(config: LanguageConfig) -> None:
    model, ids = made(config), torch.randint(0, VOCAB, (2, 12))
    out = model.encode(ids) if config.head == "none" else model(ids)
    (out * torch.randn_like(out)).sum().backward()
    assert starved(model) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 3}, "kv_heads 3"),
        ({"norm": "batch"}, "norm 'batch' is unknown"),
        ({"mask": "none"}, "mask 'none' is unknown"),
        ({"activation": "tanh"}, "activation 'tanh' is unknown"),
    ],
)
def test_bad_configurations_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_every_published_text_tower_opens_or_is_refused_by_name() -> None:
    refused = set()
    for name, model in open_clip_models():
        if "hf_model_name" in model["text_cfg"]:
            with pytest.raises(ValueError, match=r"hf_\w+ = "):
                open_clip_text_config(model)
            refused.add(name)
        else:
            open_clip_text_config(model)
    assert 0 < len(refused) < 20


# refusals, by name

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    ("gpt2", {"activation_function": "mish"}, "'mish' is unknown"),
    ("gpt2", {"rotary_dim": 8}, "rotary_dim = 8"),
    ("llama", {"sliding_window": 8}, "sliding_window = 8"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "rope_type = 'longrope'"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, "beta = 1"),
    ("t5", {"is_decoder": True}, "is_decoder = True"),
    ("t5", {"feed_forward_proj": "gated-relu"}, "'gated-relu' is unknown"),
    ("mistral", {}, "model_type 'mistral'"),
]


@pytest.mark.parametrize(("kind", "asked", "message"), REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(
    kind: str, asked: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = {"gpt2": GPT2, "llama": LLAMA, "t5": T5, "mistral": LLAMA}[kind]
    save_language_model(made(config), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": kind} | asked))
    with pytest.raises(ValueError, match=message):
        language_model_from_folder(tmp_path)


PUBLISHED: list[tuple[str, dict[str, Any]]] = [  # what the config.json of well-known folders says besides
    ("gpt2", {"n_ctx": 64, "summary_type": "cls_index", "task_specific_params": {"text-generation": {"do_sample": 1}},
              "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "attn_pdrop": 0.1, "resid_pdrop": 0.1}),
    ("llama", {"pretraining_tp": 1, "torch_dtype": "bfloat16", "attention_dropout": 0.0, "initializer_range": 0.02,
               "is_llama_config": True, "rope_interleaved": False, "transformers_version": "4.45.0"}),
    ("t5", {"decoder_start_token_id": 0, "dropout_rate": 0.1, "dense_act_fn": "gelu_new", "is_gated_act": True,
            "num_decoder_layers": 8, "output_past": True, "is_encoder_decoder": True, "classifier_dropout": 0.0}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "said"), PUBLISHED, ids=["gpt2", "llama", "t5"])
def test_what_changes_nothing_is_not_refused(kind: str, said: dict[str, Any], tmp_path: Path) -> None:
    config = {"gpt2": GPT2, "llama": LLAMA, "t5": T5}[kind]
    save_language_model(made(config), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    assert language_model_from_folder(tmp_path).config == config


@torch.no_grad()
def test_the_encoder_of_a_whole_t5_is_read(tmp_path: Path) -> None:
    sizes = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(0, VOCAB, (2, 12))
    expected = theirs.encoder(ids).last_hidden_state
    found = language_model_from_folder(tmp_path).encode(ids)
    assert (found - expected).abs().max() / expected.abs().max() < TOLERANCE


def test_old_and_new_spellings_of_rotary_scaling_are_one(tmp_path: Path) -> None:
    save_language_model(made(LLAMA3), tmp_path)
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
    path.write_text(json.dumps(new | {"rope_parameters": {"rope_theta": old["rope_theta"], **old["rope_scaling"]}}))
    assert language_model_from_folder(tmp_path).config == LLAMA3


def test_what_no_format_can_say_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of gpt2, llama, t5"):
        save_language_model(made(replace(GPT2, stack=replace(SMALL, norm="rms"))), tmp_path)


def test_a_shard_that_is_elsewhere_is_not_read(tmp_path: Path) -> None:
    save_language_model(made(GPT2), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "part.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"wte.weight": "part.safetensors"}}))
    assert language_model_from_folder(tmp_path).config == GPT2
    index.write_text(json.dumps({"weight_map": {"wte.weight": "../part.safetensors"}}))
    with pytest.raises(ValueError, match="no file beside it"):
        language_model_from_folder(tmp_path)

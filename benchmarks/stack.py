"""Whether the one Transformer stack gives what the library of each kind of model gives, on the same random weights."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from open_clip.model import CLIPTextCfg, _build_text_tower
from safetensors.torch import save_file
from torch import Tensor, nn

from clip.pretrained import text_encoder_from_folder
from clip.pretrained_language import language_model_from_folder

TOLERANCE = 1e-5
VOCAB, LENGTH, BATCH = 211, 24, 4
END = VOCAB - 1
SIZES = {"small": (32, 2, 2), "medium": (96, 3, 4), "large": (256, 6, 8)}  # width, layers, heads
COMMAND = "python -m benchmarks.stack"
EXAMPLES = """examples:
  python -m benchmarks.stack
  python -m benchmarks.stack llama open_clip      # the kinds whose names begin so

exit codes: 0 every model is the same within 1e-5; 1 one is not.
"""
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 8}


@dataclass(frozen=True)
class Batch:
    ids: Tensor  # [B, L]
    valid: Tensor  # [B, L], false at padding: right, left, none, right
    positions: Tensor  # [B, L]


Pair = tuple[Tensor, Tensor]  # ours, theirs
Case = Callable[[int, int, int, Path], Pair]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(CASES)} (default: all)")
    args = parser.parse_args(argv)
    chosen = [name for name in CASES if not args.kinds or name.startswith(tuple(args.kinds))]
    print(f"Largest difference over largest value, float32, batches of {BATCH} texts, padded ones among them;")
    print(f"torch {version('torch')}, transformers {version('transformers')}, ", end="")
    print(f"open_clip {version('open-clip-torch')}.\n")
    print(f"| model | {' | '.join(SIZES)} |\n|:--|{'--:|' * len(SIZES)}")
    worst = 0.0
    for name in chosen:
        found = [difference(name, size) for size in SIZES]
        worst = max(worst, *found)
        print(f"| {name} | {' | '.join(f'{value:.1e}' for value in found)} |", flush=True)
    same = worst <= TOLERANCE
    print(f"\nAt most {TOLERANCE:g}: {'holds' if same else 'does not hold'}.")
    return 0 if same else 1


@torch.no_grad()
def difference(name: str, size: str) -> float:
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        ours, theirs = CASES[name](*SIZES[size], Path(folder))
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def filled(network: nn.Module) -> Any:
    """Noise in every parameter, also in those that start at 0 or 1: a mix-up of them would not show."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        else:
            nn.init.normal_(parameter, mean=float("norm" in name or "ln_" in name), std=0.1)
    return network.eval()


def batch() -> Batch:
    valid = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    valid[0, LENGTH // 2 :] = False
    valid[1, : LENGTH // 3] = False
    valid[3, 3:] = False
    return Batch(torch.randint(0, END, (BATCH, LENGTH)), valid, (valid.long().cumsum(dim=1) - 1).clamp(min=0))


def language_model(kind: str, **settings: Any) -> Case:
    def case(width: int, layers: int, heads: int, folder: Path) -> Pair:
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        config = transformers.AutoConfig.for_model(kind, vocab_size=VOCAB, **sizes, **settings)
        theirs = filled(transformers.AutoModelForCausalLM.from_config(config))
        theirs.save_pretrained(folder, max_shard_size="100KB")
        texts = batch()
        expected = theirs(texts.ids, attention_mask=texts.valid.long(), position_ids=texts.positions).logits
        found = language_model_from_folder(folder)(texts.ids, texts.valid)
        return found[texts.valid], expected[texts.valid]

    return case


def t5(**settings: Any) -> Case:
    def case(width: int, layers: int, heads: int, folder: Path) -> Pair:
        # Heads of their own width, as T5's are.
        config = transformers.T5Config(
            vocab_size=VOCAB, d_model=width, d_ff=2 * width, num_layers=layers, num_heads=heads, d_kv=24, **settings
        )
        theirs = filled(transformers.T5EncoderModel(config))
        theirs.save_pretrained(folder)
        texts = batch()
        expected = theirs(texts.ids, attention_mask=texts.valid.long()).last_hidden_state
        found = language_model_from_folder(folder).encode(texts.ids, texts.valid)
        return found[texts.valid], expected[texts.valid]

    return case


def clip_text(activation: str) -> Case:
    def case(width: int, layers: int, heads: int, folder: Path) -> Pair:
        config = transformers.CLIPTextConfig(
            vocab_size=VOCAB, max_position_embeddings=LENGTH, hidden_size=width, num_hidden_layers=layers,
            num_attention_heads=heads, intermediate_size=4 * width, hidden_act=activation, eos_token_id=END,
            bos_token_id=None, pad_token_id=None, projection_dim=width // 2,
        )  # fmt: skip
        theirs = filled(transformers.CLIPTextModelWithProjection(config))
        theirs.save_pretrained(folder)
        ids = ended()
        expected = theirs(ids)
        found = text_encoder_from_folder(folder)(ids)
        return _joined(found.tokens, found.pooled), _joined(expected.last_hidden_state, expected.text_embeds)

    return case


def open_clip_text(model: dict[str, Any]) -> Case:
    def case(width: int, layers: int, heads: int, folder: Path) -> Pair:
        sizes = {"width": width, "layers": layers, "heads": heads, "vocab_size": VOCAB, "context_length": LENGTH}
        text = model["text_cfg"] | sizes
        asked = {"embed_dim": width // 2, "text_cfg": text, "quick_gelu": model.get("quick_gelu", False)}
        if text.get("proj_type") == "none":
            asked["embed_dim"] = width
        theirs = filled(_build_text_tower(asked["embed_dim"], CLIPTextCfg(**text), asked["quick_gelu"]))
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": asked}))
        weights = {f"text.{key}": weight.contiguous() for key, weight in theirs.state_dict().items()}
        save_file(weights, folder / "open_clip_model.safetensors")
        ids = ended(text.get("eos_id", END) if text.get("pool_type") == "eos" else END, text.get("pad_id", 0))
        theirs.output_tokens = True
        pooled, tokens = theirs(ids)
        if theirs.cls_emb is not None:
            tokens = theirs.ln_final(tokens)  # left out there, in CoCa alone
        found = text_encoder_from_folder(folder)(ids)
        return _joined(found.tokens, found.pooled), _joined(tokens, pooled)

    return case


def ended(end: int = END, pad: int = END) -> Tensor:
    """Texts of several lengths, ended and padded. [B, L]"""
    ids = torch.randint(5, END, (BATCH, LENGTH))
    for row, stop in zip(ids, (1, LENGTH // 2, LENGTH - 4, LENGTH - 1), strict=True):
        row[stop], row[stop + 1 :] = end, pad
    return ids


def _joined(tokens: Tensor, pooled: Tensor) -> Tensor:
    return torch.cat([tokens.flatten(), pooled.flatten()])


def open_clip_models() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, configuration) of every model that open_clip publishes one of, in the order of the names."""
    folder = files("open_clip") / "model_configs"
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.endswith(".json"):
            yield path.name.removesuffix(".json"), json.loads(path.read_text())


def open_clip_towers() -> dict[str, Case]:
    """The text towers among them that differ in more than size and tokenizer, each by the first model that has it."""
    apart = {"width", "layers", "heads", "vocab_size", "context_length", "hf_tokenizer_name", "tokenizer_kwargs"}
    found: dict[str, str] = {}
    cases = {}
    for name, model in open_clip_models():
        text = model["text_cfg"]
        options = {key: value for key, value in text.items() if key not in apart} | {"quick": model.get("quick_gelu")}
        key = json.dumps(options, sort_keys=True)
        if "hf_model_name" not in text and key not in found:
            found[key] = name
            cases[f"open_clip {name}"] = open_clip_text(model)
    return cases


CASES: dict[str, Case] = {
    "gpt2": language_model("gpt2"),
    "gpt2, untied": language_model("gpt2", tie_word_embeddings=False, activation_function="gelu"),
    "llama 2": language_model("llama", intermediate_size=80),
    "llama 3": language_model("llama", num_key_value_heads=2, rope_parameters=LLAMA3, head_dim=32),
    "llama 3.2, tied": language_model("llama", num_key_value_heads=1, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "llama, linear": language_model("llama", rope_parameters={"rope_type": "linear", "factor": 4.0}),
    "llama, dynamic": language_model(
        "llama", rope_parameters={"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=16
    ),
    "llama, yarn": language_model("llama", rope_parameters=YARN, max_position_embeddings=16),
    "llama, biases": language_model("llama", attention_bias=True, mlp_bias=True),
    "t5": t5(),
    "t5 1.1": t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "clip": clip_text("quick_gelu"),
    "clip, gelu": clip_text("gelu"),
    **open_clip_towers(),
    "open_clip, layer scale": open_clip_text({"text_cfg": {"ls_init_value": 0.1}}),
}

if __name__ == "__main__":
    sys.exit(main())

"""GPT-2, LLaMA 2 and 3, and T5's encoder as transformers writes them down: their configurations and names beside ours.

What a configuration asks for and the stack has not is refused by name.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from clip.folder import activation, activation_name
from clip.language_model import Head, LanguageConfig
from clip.positions import Relative, Rotary
from clip.transformer import Activation, TransformerConfig

Json = dict[str, Any]
# Keys of config.json that change nothing that is computed here: of training, of decoders, of how a text is drawn.
IGNORED = (
    "_*", "architectures", "model_type", "*dtype", "transformers*", "use_cache", "task_specific_params",
    "is_llama_config", "id2label", "label2id", "initializer_*", "*drop*", "gradient_checkpointing",
    "pretraining_tp", "reorder_and_upcast_attn", "predict_special_tokens", "n_ctx", "n_special", "pad_token_id",
    "max_length", "max_sequence_length", "do_sample", "output_*", "summary_*", "is_encoder_decoder",
    "num_decoder_layers", "decoder_start_token_id", "scale_decoder_outputs", "dense_act_fn", "is_gated_act",
)  # fmt: skip


@dataclass(frozen=True)
class Format:
    """How models of one kind are written down.

    `names` are theirs: ours, as `rename` takes them; what a bare model leaves out of its names is `prefix`.
    Matrices whose names contain one of `transposed` multiply from the right; keys that match `unread` hold
    nothing that is needed here. `apart` are the parts of ours that theirs do not fuse.
    """

    head_class: str
    bare_class: str
    prefix: str
    names: dict[str, str]
    read: Callable[[Json], LanguageConfig]
    write: Callable[[LanguageConfig], Json]
    unread: str
    transposed: tuple[str, ...] = ()
    apart: tuple[str, ...] = (".qkv.", ".up.")


def options(given: Mapping[str, Any], defaults: Json, fixed: Json) -> Json:
    """What config.json says and, where it is silent, transformers' defaults. Raises ValueError by name."""
    for name, value in given.items():
        if name in fixed and value != fixed[name]:
            raise ValueError(f"config.json asks for {name} = {value!r}: {fixed[name]!r} alone can be followed")
        known = name in defaults or name in fixed or any(fnmatchcase(name, pattern) for pattern in IGNORED)
        if not known and value not in (None, False):
            raise ValueError(f"config.json asks for {name} = {value!r}, which is not known here")
    return {**defaults, **{name: value for name, value in given.items() if name in defaults}}


def head(said: Json) -> Head:
    return "tied" if said["tie_word_embeddings"] else "untied"


def tokens(said: Json) -> Json:
    ends = said["eos_token_id"]
    ends = () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)
    return {"start_token_id": said["bos_token_id"], "end_token_ids": ends}


def token_json(config: LanguageConfig) -> Json:
    ends = list(config.end_token_ids)
    return {"bos_token_id": config.start_token_id, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}


def read_gpt2(given: Json) -> LanguageConfig:
    defaults = {
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
        "bos_token_id": 50256, "eos_token_id": 50256,
    }  # fmt: skip
    fixed = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    said = options(given, defaults, fixed)
    stack = TransformerConfig(
        width=said["n_embd"],
        layers=said["n_layer"],
        heads=said["n_head"],
        mlp_width=said["n_inner"] or 4 * said["n_embd"],
        activation=activation(said["activation_function"]),
        norm_eps=said["layer_norm_epsilon"],
    )
    return LanguageConfig(said["vocab_size"], said["n_positions"], stack, head(said), **tokens(said))


def write_gpt2(config: LanguageConfig) -> Json:
    stack = config.stack
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.length,
        "n_embd": stack.width,
        "n_layer": stack.layers,
        "n_head": stack.heads,
        "n_inner": stack.mlp_width,
        "activation_function": activation_name(stack.activation),
        "layer_norm_epsilon": stack.norm_eps,
        "tie_word_embeddings": config.head == "tied",
        **token_json(config),
    }


def read_llama(given: Json) -> LanguageConfig:
    defaults = {
        "vocab_size": 32000, "max_position_embeddings": 2048, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None,
        "rms_norm_eps": 1e-6, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
        "rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": None, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    said = options(given, defaults, {"hidden_act": "silu"})
    heads, kv_heads, width = said["num_attention_heads"], said["num_key_value_heads"], said["head_dim"]
    stack = TransformerConfig(
        width=said["hidden_size"],
        layers=said["num_hidden_layers"],
        heads=heads,
        mlp_width=said["intermediate_size"],
        activation="swiglu",
        norm="rms",
        norm_eps=said["rms_norm_eps"],
        positions=read_rotary(said),
        kv_heads=None if kv_heads in (None, heads) else kv_heads,
        head_width=None if width in (None, said["hidden_size"] // heads) else width,
        attention_bias=said["attention_bias"],
        mlp_bias=said["mlp_bias"],
    )
    return LanguageConfig(said["vocab_size"], said["max_position_embeddings"], stack, head(said), **tokens(said))


def write_llama(config: LanguageConfig) -> Json:
    stack = config.stack
    if not isinstance(stack.positions, Rotary):
        raise ValueError("a LLaMA has rotary positions")
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.length,
        "hidden_size": stack.width,
        "intermediate_size": stack.mlp_width,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "num_key_value_heads": stack.kv_heads or stack.heads,
        "head_dim": stack.head,
        "hidden_act": "silu",
        "rms_norm_eps": stack.norm_eps,
        "attention_bias": stack.attention_bias,
        "mlp_bias": stack.mlp_bias,
        "tie_word_embeddings": config.head == "tied",
        "rope_theta": stack.positions.theta,
        "rope_scaling": write_rotary(stack.positions),
        **token_json(config),
    }


# Settings of each scaling of rotary positions, theirs: ours.
ROPE: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "length",
        "low_freq_factor": "low",
        "high_freq_factor": "high",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "length",
        "beta_slow": "low",
        "beta_fast": "high",
        "attention_factor": "magnitude",
    },
}


def read_rotary(said: Json) -> Rotary:
    """Of rope_theta and rope_scaling, or of the rope_parameters that transformers 5 writes in their place."""
    given = {"rope_theta": said["rope_theta"], **(said["rope_scaling"] or {}), **(said["rope_parameters"] or {})}
    theta = float(given.pop("rope_theta"))
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    if kind not in ROPE:
        raise ValueError(f"config.json asks for rope_type = {kind!r}: {', '.join(ROPE)} can be followed")
    fixed = {"truncate": True, "partial_rotary_factor": 1.0}
    for name, value in given.items():
        if name not in ROPE[kind] and value is not None and value != fixed.get(name):
            raise ValueError(
                f"config.json asks for {name} = {value!r} in {kind} rotary positions, which is unknown here"
            )
    trained = said["max_position_embeddings"]
    settings: Json = {ours: given[theirs] for theirs, ours in ROPE[kind].items() if given.get(theirs) is not None}
    if kind == "default":
        return Rotary(theta, length=trained)
    if kind == "yarn":
        yarn = {"low": 1.0, "high": 32.0, "magnitude": 0.1 * math.log(max(settings["factor"], 1)) + 1}
        settings = yarn | settings
    return Rotary(theta, **({"scaling": kind, "length": trained} | settings))


def write_rotary(rotary: Rotary) -> Json | None:
    if rotary.scaling == "none":
        return None
    settings = {theirs: getattr(rotary, ours) for theirs, ours in ROPE[rotary.scaling].items()}
    return {"rope_type": rotary.scaling, **settings}


T5_ACTIVATIONS: dict[str, Activation] = {"gated-gelu": "geglu", "gated-silu": "swiglu"}


def read_t5(given: Json) -> LanguageConfig:
    defaults = {
        "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu", "n_positions": 512, "bos_token_id": None, "eos_token_id": 1,
        "tie_word_embeddings": True,
    }  # fmt: skip
    said = options(given, defaults, {"is_decoder": False})
    mlp = said["feed_forward_proj"]
    stack = TransformerConfig(
        width=said["d_model"],
        layers=said["num_layers"],
        heads=said["num_heads"],
        mlp_width=said["d_ff"],
        activation=T5_ACTIVATIONS[mlp] if mlp in T5_ACTIVATIONS else activation(mlp),
        mask="full",
        norm="rms",
        norm_eps=said["layer_norm_epsilon"],
        positions=Relative(said["relative_attention_num_buckets"], said["relative_attention_max_distance"]),
        head_width=None if said["d_kv"] * said["num_heads"] == said["d_model"] else said["d_kv"],
        attention_bias=False,
        mlp_bias=False,
        attention_scale=1.0,
    )
    return LanguageConfig(said["vocab_size"], said["n_positions"], stack, "none", **tokens(said))


def write_t5(config: LanguageConfig) -> Json:
    stack = config.stack
    if not isinstance(stack.positions, Relative):
        raise ValueError("a T5 has relative positions")
    gated = {ours: theirs for theirs, ours in T5_ACTIVATIONS.items()}
    return {
        "vocab_size": config.vocab_size,
        "d_model": stack.width,
        "d_kv": stack.head,
        "d_ff": stack.mlp_width,
        "num_layers": stack.layers,
        "num_heads": stack.heads,
        "relative_attention_num_buckets": stack.positions.buckets,
        "relative_attention_max_distance": stack.positions.distance,
        "layer_norm_epsilon": stack.norm_eps,
        "feed_forward_proj": gated.get(stack.activation) or activation_name(stack.activation),
        "n_positions": config.length,
        **token_json(config),
    }


# the formats

GPT2 = Format(
    "GPT2LMHeadModel", "GPT2Model", "transformer.",
    names={
        "wte.weight": "token_embedding.weight",
        "wpe.weight": "position_embedding",
        "h.": "transformer.blocks.",
        "ln_f.": "norm.",
        "lm_head.weight": "head.weight",
        ".ln_1.": ".norm1.",
        ".attn.c_attn.": ".attention.qkv.",
        ".attn.c_proj.": ".attention.out.",
        ".ln_2.": ".norm2.",
        ".mlp.c_fc.": ".mlp.up.",
        ".mlp.c_proj.": ".mlp.down.",
    },
    read=read_gpt2,
    write=write_gpt2,
    unread=r"\.attn\.(masked_)?bias$",  # the causal mask
    transposed=(".qkv.", ".out.", ".up.", ".down."),
    apart=(),
)  # fmt: skip
LLAMA = Format(
    "LlamaForCausalLM", "LlamaModel", "model.",
    names={
        "embed_tokens.weight": "token_embedding.weight",
        "layers.": "transformer.blocks.",
        "norm.": "norm.",
        "lm_head.weight": "head.weight",
        ".input_layernorm.": ".norm1.",
        ".self_attn.q_proj.": ".attention.q.",
        ".self_attn.k_proj.": ".attention.k.",
        ".self_attn.v_proj.": ".attention.v.",
        ".self_attn.o_proj.": ".attention.out.",
        ".post_attention_layernorm.": ".norm2.",
        ".mlp.gate_proj.": ".mlp.gate.",
        ".mlp.up_proj.": ".mlp.value.",
        ".mlp.down_proj.": ".mlp.down.",
    },
    read=read_llama,
    write=write_llama,
    unread=r"\.rotary_emb\.inv_freq$",
)  # fmt: skip
T5 = Format(
    "T5EncoderModel", "T5EncoderModel", "",
    names={
        "encoder.embed_tokens.weight": "token_embedding.weight",  # the same table, by either name or by both
        "shared.weight": "token_embedding.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "transformer.relative.weight",
        "encoder.block.": "transformer.blocks.",
        "encoder.final_layer_norm.": "norm.",
        ".layer.0.layer_norm.": ".norm1.",
        ".layer.0.SelfAttention.q.": ".attention.q.",
        ".layer.0.SelfAttention.k.": ".attention.k.",
        ".layer.0.SelfAttention.v.": ".attention.v.",
        ".layer.0.SelfAttention.o.": ".attention.out.",
        ".layer.1.layer_norm.": ".norm2.",
        ".layer.1.DenseReluDense.wi.": ".mlp.up.",
        ".layer.1.DenseReluDense.wi_0.": ".mlp.gate.",
        ".layer.1.DenseReluDense.wi_1.": ".mlp.value.",
        ".layer.1.DenseReluDense.wo.": ".mlp.down.",
    },
    read=read_t5,
    write=write_t5,
    unread=r"^decoder\.|^lm_head\.",
)  # fmt: skip
FORMATS = {"gpt2": GPT2, "llama": LLAMA, "t5": T5}

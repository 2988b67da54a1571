"""ModelConfig: the shape of a decoder, read from a Hugging Face `config.json`.

Each known field of the file is used, or it does not change the numbers, or it must hold the one value that this decoder
computes; any other value is an error that names the field. Unknown fields are ignored, and named (`passed_over`).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttrl_jax.errors import InputError
from ttrl_jax.model import gguf
from ttrl_jax.model.rope import Rope, parse_rope


@dataclass(frozen=True)
class Family:
    """How a model type differs from llama: in what it computes, and in the defaults of its config.json."""

    qkv_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each head's queries and keys, before they are rotated
    # Fields of its own, and shared ones with a value of their own, as transformers 5.23 fills them in when absent. The
    # sliding window and what belongs to it are read for the families that have them here.
    absent: dict[str, Any] = field(default_factory=dict)


_QWEN = {"num_key_value_heads": 32, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_MISTRAL = {"num_key_value_heads": 8, "sliding_window": 4096}

# model_type -> what is its own. `ministral` is `mistral` with a window only in the layers that layer_types names.
FAMILIES = {
    "llama": Family(),
    "qwen2": Family(qkv_bias=True, absent=_QWEN),
    "qwen3": Family(qk_norm=True, absent={**_QWEN, "head_dim": 128}),
    "mistral": Family(absent=_MISTRAL),
    "ministral": Family(absent=_MISTRAL),
}

# fmt: off
# Fields that this decoder reads, besides a family's own.
_USED = {
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_parameters", "rope_scaling",
    "tie_word_embeddings", "max_position_embeddings", "layer_types",
}

# Fields that do not change what the decoder computes: bookkeeping, initialisation, training-time hints, how tokens are
# drawn. Besides them, token ids (*_token_id, which are the tokenizer's business here) and transformers' own notes (_*).
_HARMLESS = {
    "architectures", "auto_map", "bad_words_ids", "bos_token", "chunk_size_feed_forward", "do_sample", "dtype",
    "eos_token", "finetuning_task", "id2label", "initializer_range", "is_decoder", "is_llama_config", "label2id",
    "length_penalty", "max_length", "max_new_tokens", "min_length", "name_or_path", "num_labels", "output_attentions",
    "output_hidden_states", "pad_token", "pretraining_tp", "problem_type", "repetition_penalty", "return_dict",
    "task_specific_params", "temperature", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype",
    "torchscript", "transformers.js_config", "transformers_version", "unsloth_fixed", "unsloth_version", "use_cache",
    "vocab_file",
}
# fmt: on
_OFF = (None, False)
_NONE = (None, 0, 1)
# Fields that change the numbers, of these families and of others that are built like them, with the values that leave
# them as this decoder computes them.
_ONLY: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": _OFF,
    "alibi": _OFF,
    "attention_bias": _OFF,
    "attention_chunk_size": (None,),
    "attention_dropout": (None, 0),
    "attention_multiplier": (None,),
    "attn_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "embedding_multiplier": _NONE,
    "final_logit_softcapping": (None,),
    "hidden_act": ("silu",),
    "hidden_activation": (None, "silu"),
    "is_encoder_decoder": _OFF,
    "kv_lora_rank": (None,),
    "logit_scale": (None, 1),
    "logit_softcapping": (None,),
    "logits_scaling": _NONE,
    "mlp_bias": _OFF,
    "moe_intermediate_size": (None,),
    "no_rope_layers": (None,),
    "num_experts": _NONE,
    "num_local_experts": _NONE,
    "original_max_position_embeddings": (None,),
    "partial_rotary_factor": (None, 1),
    "pruned_heads": (None, {}),
    "qk_layernorm": _OFF,
    "quantization_config": (None,),
    "query_pre_attn_scalar": (None,),
    "residual_multiplier": _NONE,
    "rope_interleaved": _OFF,
    "rotary_pct": (None, 1),
    "scale_depth": (None,),
    "scale_emb": (None, 1),
    "sliding_window": (None,),
    "use_bidirectional_attention": _OFF,
    "use_dynamic_ntk": _OFF,
    "use_logn_attn": _OFF,
    "use_mrope": _OFF,
    "use_parallel_residual": _OFF,
    "use_qk_norm": _OFF,
    "use_sliding_window": _OFF,
}
_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_REQUIRED = (*_COUNTS, "rms_norm_eps")
_FULL, _SLIDING = "full_attention", "sliding_attention"


# The products of a block, by the names of transformers and PEFT -> where their weights are, and how many axes of these
# are summed over. They may have adapters.
PROJECTIONS = {
    "q_proj": ("attention", "q", 1),
    "k_proj": ("attention", "k", 1),
    "v_proj": ("attention", "v", 1),
    "o_proj": ("attention", "o", 2),
    "gate_proj": ("ffn", "gate", 1),
    "up_proj": ("ffn", "up", 1),
    "down_proj": ("ffn", "down", 1),
}


@dataclass(frozen=True)
class Lora:
    """Adapters beside the weights (lora.py)."""

    rank: int
    scale: float  # factor of their product, alpha / rank
    targets: tuple[str, ...]  # names of PROJECTIONS
    base: str = "dtype"  # dtype: the base is held in the type of the computation | int8


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama-like decoder (RMSNorm, RoPE, grouped-query attention, SwiGLU)."""

    family: str
    vocab: int  # W
    width: int  # D
    ffn: int  # F
    layers: int  # L
    heads: int  # N
    kv_heads: int  # K
    head_dim: int  # H
    norm_eps: float
    rope: Rope
    tied: bool  # the output projection is the embedding table
    max_positions: int
    # For each of the L layers, how many tokens one sees, itself included; None: all of them. Just None: in all layers.
    windows: tuple[int | None, ...] | None = None
    # How whole rows are attended to, which is no part of the shape: what attention.choose found for this run's devices.
    attention: str = "xla"
    # What attends over the cache, likewise by attention.choose_decode.
    decode_attention: str = "xla"
    # The adapters that are trained in place of the weights, if any; no part of the shape either.
    lora: Lora | None = None

    @property
    def qkv_bias(self) -> bool:
        return FAMILIES[self.family].qkv_bias

    @property
    def qk_norm(self) -> bool:
        return FAMILIES[self.family].qk_norm


def read_config(source: Path) -> ModelConfig:
    """Read the config.json of a Hugging Face folder, or the same out of a GGUF file.

    Raises InputError when it is missing, broken, or asks for what is not supported.
    """
    if Path(source).is_file():
        return parse_config(gguf.config_fields(source), source=str(source))
    path = Path(source) / "config.json"
    if not path.is_file():
        raise InputError(_without_config(Path(source)))
    return parse_config(_fields(path), source=str(path))


def _fields(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a mark before the text
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); download the model again") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} should hold a JSON object, it holds a {type(fields).__name__}")
    return fields


def _without_config(folder: Path) -> str:
    """What a folder is that is no model's, in one sentence."""
    if (folder / "adapter_config.json").is_file():
        return (
            f"{folder} is an adapter (adapter_config.json), not a model; set model.path to its base model and "
            "model.adapter to this folder"
        )
    if (folder / "params.json").is_file():
        return (
            f"{folder} is a model in Mistral's or Meta's own format (params.json); give its Hugging Face folder, which "
            "has a config.json"
        )
    return f"expected a Hugging Face model folder with a config.json, found none at {folder / 'config.json'}"


def parse_config(fields: dict[str, Any], *, source: str = "config.json") -> ModelConfig:
    """Turn the fields of a `config.json` into a ModelConfig. Raises InputError naming every field at fault."""
    name = fields.get("model_type")
    if name == "mistral" and "layer_types" in fields:  # as transformers' AutoConfig reads it
        name = "ministral"
    if name not in FAMILIES:
        raise InputError(f"{source}: model_type is {name!r}, expected one of {sorted(FAMILIES)}")
    family = FAMILIES[name]
    problems = _unsupported(fields, family)
    fields = {**family.absent, "tie_word_embeddings": False, **fields}
    wrong = _wrong_types(fields)
    problems += wrong
    rope = parse_rope(fields, problems)
    windows = None if wrong else _windows(fields, problems)
    if problems:
        raise InputError(f"{source} describes a model that is not supported: " + "; ".join(problems))
    heads = fields["num_attention_heads"]
    # A yarn config may give the original context as max_position_embeddings; the model then goes further.
    stretched = int(rope.factor * rope.original) if rope.kind == "yarn" else 0
    config = ModelConfig(
        family=name,
        vocab=fields["vocab_size"],
        width=fields["hidden_size"],
        ffn=fields["intermediate_size"],
        layers=fields["num_hidden_layers"],
        heads=heads,
        kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
        norm_eps=float(fields["rms_norm_eps"]),
        rope=rope,
        tied=fields["tie_word_embeddings"],
        max_positions=max(fields["max_position_embeddings"], stretched),
        windows=windows,
    )
    if config.heads % config.kv_heads:
        raise InputError(f"{source}: {config.heads} attention heads do not divide among {config.kv_heads} kv heads")
    if config.head_dim % 2:
        raise InputError(f"{source}: head_dim is {config.head_dim}, expected an even number, whose halves are rotated")
    return config


def _unsupported(fields: dict[str, Any], family: Family) -> list[str]:
    problems = [
        f"{name}={value!r} (only {_allowed(name, family)[-1]!r} is supported)"
        for name, value in fields.items()
        if name in _ONLY and name not in family.absent and value not in _allowed(name, family)
    ]
    # Of what a GGUF file says of its architecture, such as llama.expert_count, nothing is idle that is not known.
    return problems + [f"{name}={value!r} is not known" for name, value in fields.items() if _of_gguf(name)]


def _of_gguf(name: str) -> bool:
    return "." in name and name not in _HARMLESS


def _allowed(name: str, family: Family) -> tuple[Any, ...]:
    if name == "use_sliding_window" and "sliding_window" in family.absent:
        return (None, True)  # transformers slides all the same
    return _ONLY[name]


def passed_over(source: Path) -> list[str]:
    """The unknown fields of a folder's config.json, which are ignored although they might change the numbers."""
    if source.is_file():
        return []
    fields = _fields(source / "config.json")
    name = "ministral" if fields["model_type"] == "mistral" and "layer_types" in fields else fields["model_type"]
    known = _USED | _HARMLESS | _ONLY.keys() | FAMILIES[name].absent.keys()
    return sorted(each for each in fields if each not in known and not each.endswith("_token_id") and each[0] != "_")


def _wrong_types(fields: dict[str, Any]) -> list[str]:
    problems = [f"{name} is missing" for name in _REQUIRED if fields.get(name) is None]
    for name in (*_COUNTS, "num_key_value_heads", "head_dim", "sliding_window"):
        value = fields.get(name)
        if value is not None and (type(value) is not int or value < 1):
            problems.append(f"{name}={value!r} should be a whole number above 0")
    if type(fields.get("rms_norm_eps")) not in (float, int, type(None)):
        problems.append(f"rms_norm_eps={fields['rms_norm_eps']!r} should be a number")
    if "max_window_layers" in fields and type(fields["max_window_layers"]) is not int:
        problems.append(f"max_window_layers={fields['max_window_layers']!r} should be a whole number")
    for name in ("tie_word_embeddings", "use_sliding_window"):
        if name in fields and type(fields[name]) is not bool:
            problems.append(f"{name}={fields[name]!r} should be true or false")
    return problems


def _windows(fields: dict[str, Any], problems: list[str]) -> tuple[int | None, ...] | None:
    """The window of each layer. What cannot be used is added to `problems`, by name."""
    layers, kinds = fields["num_hidden_layers"], fields.get("layer_types")
    window = fields.get("sliding_window") if fields.get("use_sliding_window", True) else None
    if kinds is None:
        first = fields.get("max_window_layers", 0)
        kinds = [_SLIDING if window is not None and layer >= first else _FULL for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (_FULL, _SLIDING) for kind in kinds):
        problems.append(f"layer_types={kinds!r} should be a list of {layers} times {_FULL!r} or {_SLIDING!r}")
    elif window is None and _SLIDING in kinds:
        problems.append(f"layer_types has {_SLIDING!r}, but there is no sliding_window in use")
    elif _SLIDING in kinds:
        return tuple(window if kind == _SLIDING else None for kind in kinds)
    return None

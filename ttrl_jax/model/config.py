"""ModelConfig: the shape of a decoder, read from a Hugging Face `config.json`.

The reading is exhaustive: each field of the file is used, or known not to change the numbers, or must hold the one
value that this decoder computes. Anything else is an error that names the field.
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
    """How a model type differs from llama: in what it computes, and in what its config.json leaves unsaid."""

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

# Fields that do not change what the decoder computes: bookkeeping, initialisation, training-time hints. Besides them,
# token ids (*_token_id, which are the tokenizer's business here) and transformers' own notes (_*).
_HARMLESS = {
    "architectures", "auto_map", "dtype", "initializer_range", "is_llama_config",
    "output_attentions", "output_hidden_states", "return_dict", "torch_dtype", "transformers.js_config",
    "transformers_version", "unsloth_fixed", "unsloth_version", "use_cache",
}
# fmt: on
# Fields that would change the numbers, with the values that leave them as this decoder computes them.
_ONLY = {
    "attention_bias": (False,),
    "attention_dropout": (0, 0.0),
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "pretraining_tp": (1,),
    "quantization_config": (None,),
    "rope_interleaved": (False,),
    "sliding_window": (None,),
    "use_mrope": (False,),
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
        raise InputError(f"expected a Hugging Face model folder with a config.json, found none at {path}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); download the model again") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} should hold a JSON object, it holds a {type(fields).__name__}")
    return parse_config(fields, source=str(path))


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
    problems = []
    for name, value in fields.items():
        if name in _USED or name in family.absent or name in _HARMLESS:
            continue
        if name.endswith("_token_id") or name.startswith("_"):
            continue
        if name not in _ONLY:
            problems.append(f"{name}={value!r} is not known (remove it if it does not change the numbers)")
        elif value not in _ONLY[name]:
            problems.append(f"{name}={value!r} (only {_ONLY[name][0]!r} is supported)")
    return problems


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

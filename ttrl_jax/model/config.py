"""ModelConfig: the shape of a decoder, read from a Hugging Face `config.json`.

The reading is exhaustive: each field of the file is used, or known not to change the numbers, or must hold the one
value that this decoder computes. Anything else is an error that names the field.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttrl_jax.errors import InputError
from ttrl_jax.model import gguf

FAMILIES = {"llama": {"qkv_bias": False}, "qwen2": {"qkv_bias": True}}

# fmt: off
# Fields that this decoder reads.
_USED = {
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_parameters", "rope_scaling",
    "tie_word_embeddings", "max_position_embeddings",
}

# Fields that do not change what the decoder computes: bookkeeping, initialisation, training-time hints. Besides them,
# token ids (*_token_id, which are the tokenizer's business here) and transformers' own notes (_*).
_HARMLESS = {
    "architectures", "auto_map", "dtype", "initializer_range", "is_llama_config", "max_window_layers",
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
    "use_mrope": (False,),
    "use_sliding_window": (False,),
}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama- or Qwen2-like decoder (RMSNorm, RoPE, grouped-query attention, SwiGLU)."""

    family: str
    vocab: int  # W
    width: int  # D
    ffn: int  # F
    layers: int  # L
    heads: int  # N
    kv_heads: int  # K
    head_dim: int  # H
    norm_eps: float
    rope_theta: float
    tied: bool  # the output projection is the embedding table
    max_positions: int

    @property
    def qkv_bias(self) -> bool:
        return FAMILIES[self.family]["qkv_bias"]


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
    family = fields.get("model_type")
    if family not in FAMILIES:
        raise InputError(f"{source}: model_type is {family!r}, expected one of {sorted(FAMILIES)}")
    problems = _unsupported(fields)
    required = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
        "max_position_embeddings",
    ]
    problems += [f"{name} is missing" for name in required if fields.get(name) is None]
    problems += [
        f"{name}={fields[name]!r} should be a number"
        for name in [*required, "num_key_value_heads", "head_dim"]
        if fields.get(name) is not None and type(fields[name]) not in (int, float)
    ]
    theta = _rope_theta(fields, problems)
    if problems:
        raise InputError(f"{source} describes a model that is not supported: " + "; ".join(problems))
    heads = fields["num_attention_heads"]
    config = ModelConfig(
        family=family,
        vocab=fields["vocab_size"],
        width=fields["hidden_size"],
        ffn=fields["intermediate_size"],
        layers=fields["num_hidden_layers"],
        heads=heads,
        kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
        norm_eps=float(fields["rms_norm_eps"]),
        rope_theta=theta,
        tied=bool(fields.get("tie_word_embeddings", False)),  # transformers' default for both families
        max_positions=fields["max_position_embeddings"],
    )
    if config.heads % config.kv_heads:
        raise InputError(f"{source}: {config.heads} attention heads do not divide among {config.kv_heads} kv heads")
    return config


def _unsupported(fields: dict[str, Any]) -> list[str]:
    problems = []
    for name, value in fields.items():
        if name in _USED or name in _HARMLESS or name.endswith("_token_id") or name.startswith("_"):
            continue
        if name == "sliding_window":  # read by transformers only when use_sliding_window is on
            if value is not None and fields["model_type"] != "qwen2":
                problems.append(f"sliding_window={value!r} (only None is supported)")
        elif name == "layer_types":
            if any(kind != "full_attention" for kind in value or ()):
                problems.append(f"layer_types={sorted(set(value))} (only full_attention is supported)")
        elif name not in _ONLY:
            problems.append(f"{name}={value!r} is not known (remove it if it does not change the numbers)")
        elif value not in _ONLY[name]:
            problems.append(f"{name}={value!r} (only {_ONLY[name][0]!r} is supported)")
    return problems


def _rope_theta(fields: dict[str, Any], problems: list[str]) -> float:
    """The rotary base. transformers 5 writes `rope_parameters`, earlier ones `rope_theta` and `rope_scaling`."""
    rope, scaling = fields.get("rope_parameters") or {}, fields.get("rope_scaling") or {}
    if not (isinstance(rope, dict) and isinstance(scaling, dict)):
        problems.append(f"rope_parameters={rope!r} and rope_scaling={scaling!r} should be objects")
        return 0.0
    rope = dict(rope)
    kind = rope.pop("rope_type", "default")
    theta = rope.pop("rope_theta", fields.get("rope_theta", 10_000.0))
    if kind != "default" or rope:
        problems.append(f"rope_parameters={fields['rope_parameters']!r} (only rope_type 'default' is supported)")
    if scaling and (scaling.get("rope_type") or scaling.get("type")) != "default":
        problems.append(f"rope_scaling={scaling!r} (only None is supported)")
    if type(theta) not in (int, float):
        problems.append(f"rope_theta={theta!r} should be a number")
        return 0.0
    return float(theta)

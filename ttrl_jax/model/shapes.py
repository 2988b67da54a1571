"""How many parameters a model has, and the shapes of well-known ones by hub name, known before anything is fetched."""

from typing import Any

import jax
import numpy as np

from ttrl_jax.model import decoder
from ttrl_jax.model.config import ModelConfig, parse_config


def _fields(kind: str, width: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int, **others: Any) -> dict:
    """The fields of a config.json."""
    return {
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-6,
        **others,
    }


def _with_instruct(name: str, fields: dict, **differing: Any) -> dict[str, dict]:
    """A base model and the one tuned from it, which has the same tensors."""
    return {name: fields, f"{name}-Instruct": {**fields, **differing}}


_LONG = {"rope_theta": 1_000_000.0, "max_position_embeddings": 131_072}
_MATH = {"rope_theta": 10_000.0, "max_position_embeddings": 4_096}
_DISTILLED = {"rope_theta": 10_000.0, "max_position_embeddings": 131_072}
_QWEN_0_5B = _fields("qwen2", 896, 4_864, 24, 14, 2, 151_936, tie_word_embeddings=True)
_QWEN_1_5B = _fields("qwen2", 1_536, 8_960, 28, 12, 2, 151_936, tie_word_embeddings=True)
_QWEN_7B = _fields("qwen2", 3_584, 18_944, 28, 28, 4, 152_064)
_QWEN_32B = _fields("qwen2", 5_120, 27_648, 64, 40, 8, 152_064)

_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500_000.0}
_LLAMA3_LENGTHS = {"max_position_embeddings": 131_072, "rms_norm_eps": 1e-5}
_LLAMA_8B = _fields("llama", 4_096, 14_336, 32, 32, 8, 128_256, **_LLAMA3_LENGTHS) | {
    "rope_parameters": {**_LLAMA3, "factor": 8.0, "original_max_position_embeddings": 8_192}
}
_LLAMA_3B = _fields("llama", 3_072, 8_192, 28, 24, 8, 128_256, **_LLAMA3_LENGTHS, tie_word_embeddings=True) | {
    "rope_parameters": {**_LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8_192}
}
_DEEPSEEK_MATH = _fields("llama", 4_096, 11_008, 30, 32, 32, 102_400, **_MATH)

_MODELS = {
    **_with_instruct("Qwen/Qwen2.5-0.5B", {**_QWEN_0_5B, **_LONG, "max_position_embeddings": 32_768}),
    **_with_instruct("Qwen/Qwen2.5-1.5B", {**_QWEN_1_5B, **_LONG}, max_position_embeddings=32_768),
    **_with_instruct("Qwen/Qwen2.5-7B", {**_QWEN_7B, **_LONG}, max_position_embeddings=32_768),
    **_with_instruct(
        "Qwen/Qwen2.5-32B",
        {**_QWEN_32B, **_LONG, "rms_norm_eps": 1e-5},
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
    ),
    **_with_instruct("Qwen/Qwen2.5-Math-1.5B", {**_QWEN_1_5B, **_MATH}),
    **_with_instruct("Qwen/Qwen2.5-Math-7B", {**_QWEN_7B, **_MATH}),
    "Qwen/Qwen3-8B": _fields("qwen3", 4_096, 12_288, 36, 32, 8, 151_936, **_LONG) | {"max_position_embeddings": 40_960},
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": {**_QWEN_1_5B, **_DISTILLED, "tie_word_embeddings": False},
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": {**_QWEN_7B, **_DISTILLED},
    "Skywork/Skywork-OR1-7B": {**_QWEN_7B, **_DISTILLED},
    "Skywork/Skywork-OR1-Math-7B": {**_QWEN_7B, **_DISTILLED},
    **_with_instruct("meta-llama/Llama-3.1-8B", _LLAMA_8B),
    **_with_instruct("meta-llama/Llama-3.2-3B", _LLAMA_3B),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": _LLAMA_8B,
    "deepseek-ai/deepseek-math-7b-base": _DEEPSEEK_MATH,
    "deepseek-ai/deepseek-math-7b-instruct": _DEEPSEEK_MATH,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _fields("llama", 576, 1_536, 30, 9, 3, 49_152, tie_word_embeddings=True)
    | {"max_position_embeddings": 8_192, "rope_theta": 100_000.0, "rms_norm_eps": 1e-5},
    "mistralai/Mistral-Nemo-Instruct-2407": _fields("mistral", 5_120, 14_336, 40, 32, 8, 131_072, **_LONG)
    | {"head_dim": 128, "sliding_window": None, "rms_norm_eps": 1e-5},
    # Published with one window, as long as its context, in all layers; it was trained with it in three layers of four.
    "mistralai/Ministral-8B-Instruct-2410": _fields("mistral", 4_096, 12_288, 36, 32, 8, 131_072)
    | {"max_position_embeddings": 32_768, "sliding_window": 32_768, "rope_theta": 100_000_000.0, "rms_norm_eps": 1e-5},
}


def named(name: str) -> ModelConfig | None:
    """The shape of the model of this hub name, as its config.json there gives it; None for a name not known here."""
    return parse_config(_MODELS[name], source=name) if name in _MODELS else None


def even_length(model: ModelConfig) -> float:
    """Tokens of a row in which attending to the tokens before takes as many operations as the products with the weights
    of the layers. For Qwen2.5-1.5B that is 30,467."""
    # Of each token: 2 for a weight; 4 for a place that it attends to, of which there are half the length on average.
    return _count(decoder.shapes(model)["blocks"]) / (model.layers * model.heads * model.head_dim)


def parameter_count(model: ModelConfig) -> int:
    """Parameters of the model, a tied table counted once."""
    return _count(decoder.shapes(model))


def _count(shapes: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))

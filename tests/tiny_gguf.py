"""Writes a tiny decoder as llama.cpp's converter would, for tests."""

from pathlib import Path

import gguf
import numpy as np

from ttrl_jax.model.config import ModelConfig

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOKENS = ["<unk>", "<s>", "</s>", *"0123456789", "a", "b", "Ġ", "ab", "Ġa", "<think>"]
TOKENIZER = {
    "model": "gpt2",
    "pre": "smollm",
    "tokens": TOKENS,
    "token_type": [3, 3, 3] + [1] * 15 + [4],
    "merges": ["a b", "Ġ a"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
    "add_bos_token": False,
}


def their_name(name: str) -> str:
    """llama.cpp's name of a Hugging Face tensor."""
    stem, end = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, stem = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{NAMES[stem]}.{end}"
    return f"{NAMES[stem]}.{end}"


def their_rows(name: str, x: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The rows of a query or key projection as llama.cpp's converter orders them for the llama architecture."""
    if config.family != "llama" or not ("q_proj" in name or "k_proj" in name):
        return x
    heads = config.heads if "q_proj" in name else config.kv_heads
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def metadata(config: ModelConfig) -> dict[str, int | float]:
    """The shape's metadata, without the architecture before the names."""
    return {
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "block_count": config.layers,
        "context_length": config.max_positions,
        "embedding_length": config.width,
        "feed_forward_length": config.ffn,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope.theta,
        "vocab_size": config.vocab,
    }


def write(
    path: Path,
    config: ModelConfig,
    tensors: dict[str, np.ndarray],
    *,
    kinds: tuple[str, ...] = ("F32",),
    shape: dict[str, int | float] | None = None,
    tokenizer: dict | None = None,
    extra: dict[str, np.ndarray] | None = None,
    architecture: str | None = None,
    endianess: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
) -> dict[str, np.ndarray]:
    """Write `tensors` (Hugging Face names), matrices in turn as each of `kinds`, vectors as float32.

    Returns what a reader should find: the same tensors after quantising and back, float32.
    """
    writer = gguf.GGUFWriter(path, architecture or config.family, endianess=endianess)
    for name, value in (metadata(config) if shape is None else shape).items():
        add = writer.add_uint32 if type(value) is int else writer.add_float32
        add(f"{architecture or config.family}.{name}", value)
    for name, value in (tokenizer or {}).items():
        writer.add_key_value(
            f"tokenizer.{name}" if name == "chat_template" else f"tokenizer.ggml.{name}", value, *kind_of(value)
        )
    found, matrices = {}, 0
    for name, x in tensors.items():
        kind = gguf.GGMLQuantizationType.F32
        if x.ndim == 2:
            kind, matrices = gguf.GGMLQuantizationType[kinds[matrices % len(kinds)]], matrices + 1
        found[name] = gguf.dequantize(gguf.quantize(x, kind), kind)
        data = gguf.quantize(np.ascontiguousarray(their_rows(name, x, config)), kind)
        writer.add_tensor(their_name(name), data, raw_dtype=kind)
    for name, x in (extra or {}).items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def kind_of(value) -> tuple:
    """The GGUF type of a metadata value (and of its elements)."""
    kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, str: gguf.GGUFValueType.STRING}
    if isinstance(value, list):
        return gguf.GGUFValueType.ARRAY, kinds[type(value[0])]
    return (kinds[type(value)],)

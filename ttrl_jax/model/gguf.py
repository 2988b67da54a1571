"""Models in llama.cpp's GGUF format, seen as a Hugging Face model: the fields of its config.json, and its tensors.

One file holds the weights, usually quantised, the shape and the tokenizer. The format is described at
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; reading and dequantising are the `gguf` package's.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ttrl_jax.errors import InputError

# Shape fields: llama.cpp's name, after the architecture's -> config.json's.
_FIELDS = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "vocab_size": "vocab_size",
}
_ROPE_FIELDS = {
    "rope.freq_base": "rope_theta",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.type": "rope_type",
}
_HEAD_DIMS = ("attention.key_length", "attention.value_length", "rope.dimension_count")  # one number here
_HARMLESS = {"rope.scaling.finetuned", "tensor_data_layout"}

_ROPE_FACTORS = "rope_freqs.weight"
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class File:
    """What a GGUF file holds."""

    metadata: dict[str, Any]  # numbers, texts and lists of them, by llama.cpp's names
    tensors: dict[str, gguf.ReaderTensor]  # memory-mapped, by llama.cpp's names


class Tensor:
    """A tensor under its Hugging Face name: what is sliced out of it is read and dequantised then, to float32.

    It has the methods of a slice of the safetensors library.
    """

    def __init__(self, stored: gguf.ReaderTensor, paired_heads: int | None):
        """paired_heads: llama.cpp keeps the two halves of a head's rows interleaved, for so many heads; None: not."""
        self._stored = stored
        self._shape = [int(size) for size in reversed(stored.shape)]
        self._heads = paired_heads

    def get_shape(self) -> list[int]:
        return self._shape

    def get_dtype(self) -> str:
        """The type of what slicing returns, whatever the file holds."""
        return "F32"

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        """float32 values of the rows (and columns) asked for; only these rows are dequantised."""
        rows, *columns = index if isinstance(index, tuple) else (index,)
        rows = rows if self._heads is None else self._stored_rows(np.arange(self._shape[0])[rows])
        data, kind = self._stored.data, self._stored.tensor_type
        if len(self._shape) == 1:
            return np.asarray(gguf.dequantize(data, kind)[rows], np.float32)
        return np.asarray(gguf.dequantize(data[rows], kind)[:, *columns], np.float32)

    def _stored_rows(self, rows: np.ndarray) -> np.ndarray:
        """Where the rows of the Hugging Face tensor are in the tensor of the file."""
        size = self._shape[0] // self._heads
        head, (half, i) = rows // size, np.divmod(rows % size, size // 2)
        return head * size + 2 * i + half


def read(path: Path) -> File:
    """Open a GGUF file. Raises InputError if it is none, or cut off."""
    stat = Path(path).stat()
    return _read(Path(path), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)  # a vocabulary takes seconds to parse, and a run asks for several things
def _read(path: Path, *version: int) -> File:
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is not a readable GGUF file ({reason}); download it again") from error
    if reader.endianess is not gguf.GGUFEndian.LITTLE:
        raise InputError(f"{path} is a big-endian GGUF file; expected a little-endian one, convert it again")
    return File(metadata, {tensor.name: tensor for tensor in reader.tensors})


def config_fields(path: Path) -> dict[str, Any]:
    """The fields of the config.json that the file's model would have.

    What the file says of its architecture and has no counterpart here is added under its own name, for the reader of
    the fields to refuse. Raises InputError if the file cannot be read, or its rotary factors cannot be told.
    """
    file = read(path)
    metadata = file.metadata
    architecture = metadata["general.architecture"] if "general.architecture" in metadata else None
    prefix = f"{architecture}."
    shape = {name.removeprefix(prefix): value for name, value in metadata.items() if name.startswith(prefix)}
    head_dims = {name: shape.pop(name) for name in _HEAD_DIMS if name in shape}
    head_dim = next(iter(head_dims.values()), None)
    rope = {"rope_type": "default"} | {
        theirs: shape.pop(name) for name, theirs in _ROPE_FIELDS.items() if name in shape
    }
    if rope["rope_type"] == "none":
        rope["rope_type"] = "default"
    if _ROPE_FACTORS in file.tensors:
        rope = llama3_rope(Tensor(file.tensors[_ROPE_FACTORS], None)[:], rope, source=str(path))
    fields = {
        "model_type": architecture,
        "head_dim": head_dim,
        "rope_parameters": rope,
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    if "tokenizer.ggml.tokens" in metadata:
        fields["vocab_size"] = len(metadata["tokenizer.ggml.tokens"])
    fields |= {theirs: shape.pop(name) for name, theirs in _FIELDS.items() if name in shape}
    fields |= {prefix + name: value for name, value in head_dims.items() if value != head_dim}
    return fields | {prefix + name: value for name, value in shape.items() if name not in _HARMLESS}


def llama3_rope(factors: np.ndarray, rope: dict[str, Any], *, source: str) -> dict[str, Any]:
    """`rope_parameters` of a model whose rotary frequencies are divided by `factors` [H / 2].

    llama.cpp stores the factors in place of the numbers they come from. All Llama 3 models have the numbers below, and
    a `factor` that is the largest of the factors. Raises InputError if that does not make these factors.
    """
    numbers = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    factor = float(factors.max())
    theta = float(rope["rope_theta"]) if "rope_theta" in rope else 10_000.0
    turns = (
        numbers["original_max_position_embeddings"] / (2 * np.pi) * theta ** -(np.arange(len(factors)) / len(factors))
    )
    smooth = (turns - 1.0) / (4.0 - 1.0)  # 0 and less: long wavelengths, divided; 1 and more: kept
    expected = 1 / np.clip((1 - smooth) / factor + smooth, 1 / factor, 1)
    if rope["rope_type"] != "default" or not np.allclose(factors, expected, rtol=1e-5, atol=0):
        raise InputError(
            f"{source} scales its rotary frequencies by {_ROPE_FACTORS} otherwise than Llama 3 does; use the model's "
            "Hugging Face folder"
        )
    return rope | {"rope_type": "llama3", "factor": factor, **numbers}


def tensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors by Hugging Face name; a name without a counterpart stays as it is.

    Raises InputError if the file cannot be read or has a tensor in a format that cannot be dequantised.
    """
    file = read(path)
    heads = _paired_heads(file.metadata)
    found = {}
    for name, stored in file.tensors.items():
        if name == _ROPE_FACTORS:
            continue
        try:
            gguf.dequantize(stored.data[:1] if len(stored.shape) > 1 else stored.data, stored.tensor_type)
        except NotImplementedError as error:
            raise InputError(
                f"{path}: {name} is {stored.tensor_type.name}, which cannot be dequantised; use another quantisation"
            ) from error
        theirs, kind = _huggingface_name(name)
        found[theirs] = Tensor(stored, heads[kind] if kind in heads else None)
    return found


def _paired_heads(metadata: dict[str, Any]) -> dict[str, int]:
    """For which tensors llama.cpp reorders the rows of each head, and how many heads these have: see Tensor."""
    if metadata["general.architecture"] != "llama":
        return {}
    heads = metadata["llama.attention.head_count"]
    kv = "llama.attention.head_count_kv"
    return {"attn_q": heads, "attn_k": metadata[kv] if kv in metadata else heads}


def _huggingface_name(name: str) -> tuple[str, str]:
    """(`name` in Hugging Face's words, the part of it that says what the tensor is)."""
    match name.split("."):
        case ["blk", layer, kind, end] if kind in _BLOCK_NAMES:
            return f"model.layers.{layer}.{_BLOCK_NAMES[kind]}.{end}", kind
        case [kind, end] if kind in _NAMES:
            return f"{_NAMES[kind]}.{end}", kind
    return name, name

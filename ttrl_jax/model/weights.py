"""Weights in and out: the table from parameters to Hugging Face tensors, and the streaming read of safetensors."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # noqa: F401 - registers bfloat16 with numpy, without which safetensors cannot hand it out
import numpy as np
from safetensors import SafetensorError, safe_open

from ttrl_jax.errors import InputError
from ttrl_jax.model import decoder, gguf
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.sharding import shardings

_DTYPES = {"F32", "F16", "BF16"}
_EDGE = 1 << 20  # bytes hashed at each end of a file by `fingerprint`


@dataclass(frozen=True)
class Entry:
    """How one parameter of ours (of one layer) lies in a Hugging Face tensor."""

    name: str  # with {l} for the layer, if stacked
    shape: tuple[int, ...]  # as stored there
    read: Callable[[np.ndarray], np.ndarray]  # theirs -> ours, views only
    write: Callable[[np.ndarray], np.ndarray]  # ours -> theirs


def table(config: ModelConfig) -> dict[str, Any]:
    """The parameters' tree with an Entry for each leaf."""
    d, f, h = config.width, config.ffn, config.head_dim

    def same(name: str, *shape: int) -> Entry:
        return Entry(name, shape, lambda x: x, lambda x: x)

    def transposed(name: str, *shape: int) -> Entry:
        return Entry(name, shape, lambda x: x.T, lambda x: x.T)

    def heads_in(name: str, heads: int) -> Entry:  # [heads * H, D] <-> [D, heads, H]
        return Entry(name, (heads * h, d), lambda x: x.T.reshape(d, heads, h), lambda x: x.reshape(d, heads * h).T)

    def heads_out(name: str, heads: int) -> Entry:  # [D, heads * H] <-> [heads, H, D]
        return Entry(name, (d, heads * h), lambda x: x.T.reshape(heads, h, d), lambda x: x.reshape(heads * h, d).T)

    def bias(name: str, heads: int) -> Entry:
        return Entry(name, (heads * h,), lambda x: x.reshape(heads, h), lambda x: x.reshape(heads * h))

    block, n, k = "model.layers.{l}.", config.heads, config.kv_heads
    attention = {
        "q": heads_in(block + "self_attn.q_proj.weight", n),
        "k": heads_in(block + "self_attn.k_proj.weight", k),
        "v": heads_in(block + "self_attn.v_proj.weight", k),
        "o": heads_out(block + "self_attn.o_proj.weight", n),
    }
    if config.qkv_bias:
        attention |= {
            "q_bias": bias(block + "self_attn.q_proj.bias", n),
            "k_bias": bias(block + "self_attn.k_proj.bias", k),
            "v_bias": bias(block + "self_attn.v_proj.bias", k),
        }
    if config.qk_norm:
        attention |= {
            "q_norm": same(block + "self_attn.q_norm.weight", h),
            "k_norm": same(block + "self_attn.k_norm.weight", h),
        }
    entries = {
        "embed": same("model.embed_tokens.weight", config.vocab, d),
        "norm": same("model.norm.weight", d),
        "blocks": {
            "attention_norm": same(block + "input_layernorm.weight", d),
            "attention": attention,
            "ffn_norm": same(block + "post_attention_layernorm.weight", d),
            "ffn": {
                "gate": transposed(block + "mlp.gate_proj.weight", f, d),
                "up": transposed(block + "mlp.up_proj.weight", f, d),
                "down": transposed(block + "mlp.down_proj.weight", d, f),
            },
        },
    }
    if not config.tied:
        entries["head"] = same("lm_head.weight", config.vocab, d)
    return entries


def load(source: Path, config: ModelConfig, mesh: jax.sharding.Mesh) -> decoder.Params:
    """Stream the safetensors of a Hugging Face folder, or a GGUF file, onto the mesh, as float32 masters.

    Each device's part is read by itself, layer by layer, from the memory-mapped files: no whole copy of the model is
    made on the host. Raises InputError listing every missing, unexpected and mis-shaped tensor at once.
    """
    tensors = check(source, config)
    axes, shapes = decoder.logical_axes(config), decoder.shapes(config)

    def read(entry: Entry, shape: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            if "{l}" not in entry.name:
                return np.asarray(entry.read(tensors[entry.name][:])[index], np.float32)
            layers = range(*index[0].indices(config.layers))
            whole = (entry.read(tensors[entry.name.format(l=layer)][:]) for layer in layers)
            return np.stack([np.asarray(tensor[index[1:]], np.float32) for tensor in whole])

        return jax.make_array_from_callback(shape.shape, sharding, part)

    return jax.tree.map(read, table(config), shapes, shardings(axes, shapes, mesh), is_leaf=_is_entry)


def to_huggingface(params: decoder.Params, config: ModelConfig) -> dict[str, np.ndarray]:
    """The parameters as Hugging Face tensors by name (float32, contiguous host arrays)."""
    tensors = {}
    entries = jax.tree.leaves(table(config), is_leaf=_is_entry)
    for entry, array in zip(entries, jax.tree.leaves(params), strict=True):
        host = np.asarray(array)
        if "{l}" in entry.name:
            for layer in range(config.layers):
                tensors[entry.name.format(l=layer)] = np.ascontiguousarray(entry.write(host[layer]))
        else:
            tensors[entry.name] = np.ascontiguousarray(entry.write(host))
    return tensors


def fingerprint(source: Path) -> str:
    """Tell one set of weights from another without reading them whole: SHA-256 over the config of a folder and, for
    each weight file, its size and the first and last MiB."""
    source = Path(source)
    digest = hashlib.sha256(b"" if source.is_file() else (source / "config.json").read_bytes())
    for path in [source] if source.is_file() else _files(source):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE))
            file.seek(max(0, size - _EDGE))
            digest.update(file.read(_EDGE))
    return digest.hexdigest()


def sha256(params: decoder.Params) -> str:
    """SHA-256 over the float32 bytes of all parameters in their tree's order: two runs agree only bit by bit."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _is_entry(node: object) -> bool:
    return isinstance(node, Entry)


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index} is not a safetensors index ({error!r}); download the model again") from error
    else:
        names = ["model.safetensors"]
    files = [folder / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{folder} lacks the weight files {', '.join(missing)}; only safetensors are read")
    return files


def _open(folder: Path) -> dict[str, Any]:
    """All tensors of the folder by name, as lazy slices."""
    tensors = {}
    for path in _files(folder):
        try:
            file = safe_open(path, framework="np")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a readable safetensors file ({error}); download it again") from error
        tensors |= {name: file.get_slice(name) for name in file.keys()}
    return tensors


def check(source: Path, config: ModelConfig) -> dict[str, Any]:
    """Open the tensors of a Hugging Face folder or GGUF file, as lazy slices by Hugging Face name.

    Raises InputError listing all that do not match `config`.
    """
    tensors, expected = gguf.tensors(source) if Path(source).is_file() else _open(Path(source)), {}
    for entry in jax.tree.leaves(table(config), is_leaf=_is_entry):
        names = [entry.name.format(l=i) for i in range(config.layers)] if "{l}" in entry.name else [entry.name]
        expected |= {name: entry.shape for name in names}
    # Buffers that old exports carry, and the copy of a tied table that some keep: transformers ignores both too.
    ignored = {name for name in tensors if name.endswith("rotary_emb.inv_freq")}
    if config.tied:
        ignored.add("lm_head.weight")
    problems = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"unexpected {name}" for name in sorted(tensors.keys() - expected.keys() - ignored)]
    for name in sorted(expected.keys() & tensors.keys()):
        shape, dtype = tuple(tensors[name].get_shape()), tensors[name].get_dtype()
        if shape != expected[name]:
            problems.append(f"{name} has shape {list(shape)}, expected {list(expected[name])}")
        elif dtype not in _DTYPES:
            problems.append(f"{name} is {dtype}, expected one of {sorted(_DTYPES)}")
    if problems:
        raise InputError(f"the weights in {source} do not match its config: " + "; ".join(problems))
    return tensors

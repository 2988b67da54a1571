"""Weights in and out: the table from parameters to Hugging Face tensors, and the streaming read of safetensors, GGUF
and PyTorch files."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401 - registers bfloat16 with numpy, without which safetensors cannot hand it out
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open

from ttrl_jax.errors import InputError
from ttrl_jax.model import decoder, gguf, torch_files
from ttrl_jax.model.config import ModelConfig, read_config
from ttrl_jax.model.int8 import Int8, quantised
from ttrl_jax.model.sharding import replicated, shardings

_DTYPES = {"F32", "F16", "BF16"}
_CHUNK = 1 << 20  # numbers of a tensor that are converted to float32 at once
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_EDGE = 1 << 20  # bytes hashed at each end of a file by `fingerprint`


@dataclass(frozen=True)
class Entry:
    """How one parameter of ours (of one layer) lies in a Hugging Face tensor."""

    name: str  # with {l} for the layer, if stacked
    ours: tuple[int, ...]  # our shape
    axes: tuple[tuple[int, ...], ...]  # for each dimension there, which of our axes it runs over, the outermost first

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored there."""
        return tuple(math.prod(self.ours[axis] for axis in group) for group in self.axes)

    def read(self, tensor: Any, index: tuple[slice, ...]) -> np.ndarray:
        """Our `index` out of a lazy tensor, as a contiguous float32 array. Nothing else of the tensor is read."""
        spans = [range(*part.indices(size)) for part, size in zip(index, self.ours, strict=True)]
        part = np.empty([len(span) for span in spans], np.float32)
        theirs = part.transpose(self._order)  # a view of the part, to be filled in the order of the file
        rows, *columns = [self._stored(group, spans) for group in self.axes]
        inner = (rows.stop - rows.start) // len(theirs)
        step = max(1, _CHUNK // math.prod(theirs.shape[1:]))
        for begin in range(0, len(theirs), step):
            piece = theirs[begin : begin + step]
            start = rows.start + begin * inner
            piece[...] = tensor[(slice(start, start + len(piece) * inner), *columns)].reshape(piece.shape)
        return part

    def write(self, part: np.ndarray) -> np.ndarray:
        """Ours, whole -> theirs, contiguous."""
        return np.ascontiguousarray(part.transpose(self._order).reshape(self.shape))

    @property
    def _order(self) -> list[int]:
        return [axis for group in self.axes for axis in group]

    def _stored(self, group: tuple[int, ...], spans: list[range]) -> slice:
        """Where the spans of our axes are in the dimension of the stored tensor that covers them."""
        first, *rest = group
        if any(len(spans[axis]) != self.ours[axis] for axis in rest):
            raise ValueError(f"{self.name}: a part of our axes {rest} is scattered over the stored tensor")
        size = math.prod(self.ours[axis] for axis in rest)
        return slice(spans[first].start * size, spans[first].stop * size)


def table(config: ModelConfig) -> dict[str, Any]:
    """The parameters' tree with an Entry for each leaf."""
    d, f, h = config.width, config.ffn, config.head_dim

    def same(name: str, *shape: int) -> Entry:
        return Entry(name, shape, tuple((axis,) for axis in range(len(shape))))

    def transposed(name: str, *shape: int) -> Entry:  # [F, D] there, [D, F] here
        return Entry(name, shape[::-1], ((1,), (0,)))

    def heads_in(name: str, heads: int) -> Entry:  # [heads * H, D] there, [D, heads, H] here
        return Entry(name, (d, heads, h), ((1, 2), (0,)))

    def heads_out(name: str, heads: int) -> Entry:  # [D, heads * H] there, [heads, H, D] here
        return Entry(name, (heads, h, d), ((2,), (0, 1)))

    def bias(name: str, heads: int) -> Entry:
        return Entry(name, (heads, h), ((0, 1),))

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
        "embed": same(_EMBED, config.vocab, d),
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
        entries["head"] = same(_HEAD, config.vocab, d)
    return entries


def load(source: Path, config: ModelConfig, mesh: jax.sharding.Mesh, dtype: jnp.dtype = jnp.float32) -> decoder.Params:
    """Stream the weights of a Hugging Face folder, or a GGUF file, onto the mesh, as masters in `dtype`, to which they
    are rounded to nearest.

    Each device's part is read by itself, by its byte ranges and layer by layer, into arrays that are on the mesh
    already: what the host holds is one layer's tensor, not the model. Raises InputError listing every missing,
    unexpected and mis-shaped tensor at once.
    """
    tensors = check(source, config)
    axes, shapes = decoder.logical_axes(config), decoder.shapes(config)

    def place(entry: Entry, shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.Array:
        if "{l}" not in entry.name:
            return _read(entry, tensors[entry.name], sharding, dtype)
        one_layer = NamedSharding(mesh, PartitionSpec(*sharding.spec[1:]))
        stack = jnp.zeros(shape.shape, dtype, device=sharding)
        for layer in range(config.layers):
            values = _read(entry, tensors[entry.name.format(l=layer)], one_layer, dtype)
            # Waited for, as otherwise reading runs ahead and its tensors pile up on the host.
            stack = jax.block_until_ready(_set_layer(stack, values, layer, sharding=sharding))
        return stack

    return jax.tree.map(place, table(config), shapes, shardings(axes, shapes, mesh), is_leaf=_is_entry)


def load_base(source: Path, config: ModelConfig, layout: decoder.Params) -> decoder.Params:
    """Stream the weights of a Hugging Face folder, or a GGUF file, into `layout`: ShapeDtypeStructs with shardings, of
    the tree of `decoder.sampling_weights`, some of them as 8 bits (int8.py). The host rounds them, one tensor at a
    time. Raises InputError as `load` does."""
    return base_of(check(source, config), config, layout)


def base_of(tensors: dict[str, Any], config: ModelConfig, layout: decoder.Params) -> decoder.Params:
    """The same of lazy Hugging Face tensors by name, which match the config."""
    entries = table(config)

    def place(entry: Entry, like: Any, inputs: int, layer: int = 0) -> Any:
        tensor = tensors[entry.name.format(l=layer)]
        if not isinstance(like, Int8):
            return jax.block_until_ready(_filled(like, functools.partial(entry.read, tensor)))
        # A scale is of all inputs, of which a device may have some.
        whole = quantised(entry.read(tensor, tuple(slice(0, size) for size in entry.ours)), inputs=inputs)
        return jax.block_until_ready(
            Int8(_filled(like.codes, whole.codes.__getitem__), _filled(like.scales, whole.scales.__getitem__))
        )

    block, of = entries.pop("blocks"), functools.partial(jax.tree.map, is_leaf=_is_entry)
    inputs = decoder.at_products(lambda _, inputs: inputs, of(lambda entry: 0, block))
    layers = enumerate(layout["blocks"])
    blocks = tuple(of(functools.partial(place, layer=layer), block, its_layout, inputs) for layer, its_layout in layers)
    return {**{name: place(entry, layout[name], 0) for name, entry in entries.items()}, "blocks": blocks}


def _read(entry: Entry, tensor: Any, sharding: NamedSharding, dtype: jnp.dtype) -> jax.Array:
    """A tensor, or one layer's, on the mesh."""
    like = jax.ShapeDtypeStruct(entry.ours, dtype, sharding=sharding)
    return _filled(like, functools.partial(entry.read, tensor))


def _filled(like: jax.ShapeDtypeStruct, read: Callable[[tuple[slice, ...]], np.ndarray]) -> jax.Array:
    """An array as `like`, of what `read` returns for an index. A part that several devices hold is read once."""
    parts: dict[tuple[tuple[int, ...], ...], np.ndarray] = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple(span.indices(size) for span, size in zip(index, like.shape, strict=True))
        if key not in parts:
            parts[key] = read(index).astype(like.dtype, copy=False)
        return parts[key]

    return jax.make_array_from_callback(like.shape, like.sharding, part)


@functools.partial(jax.jit, donate_argnames="stack", static_argnames="sharding")
def _set_layer(stack: jax.Array, values: jax.Array, layer: int, *, sharding: NamedSharding) -> jax.Array:
    stack = jax.lax.dynamic_update_index_in_dim(stack, values, layer, 0)
    return jax.lax.with_sharding_constraint(stack, sharding)


def names(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the Hugging Face model has."""
    found = {}
    for entry in jax.tree.leaves(table(config), is_leaf=_is_entry):
        layers = range(config.layers) if "{l}" in entry.name else [0]
        found |= {entry.name.format(l=layer): entry.shape for layer in layers}
    return found


def to_huggingface(params: decoder.Params, config: ModelConfig) -> dict[str, np.ndarray]:
    """The parameters as Hugging Face tensors by name (float32, contiguous host arrays)."""
    return dict(stream_out(params, config))


def stream_out(params: decoder.Params, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """What `to_huggingface` returns, one tensor after the other, in the order of `names`."""
    entries = jax.tree.leaves(table(config), is_leaf=_is_entry)
    for entry, array in zip(entries, jax.tree.leaves(params), strict=True):
        if "{l}" in entry.name:
            for layer in range(config.layers):
                yield entry.name.format(l=layer), entry.write(np.asarray(array[layer], np.float32))
        else:
            yield entry.name, entry.write(np.asarray(array, np.float32))


def stream_in(
    source: Path, config: ModelConfig, more: Mapping[str, Callable[[], np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """The Hugging Face tensors of a folder or GGUF file by name, one after the other, in the order of `names`: float32
    host arrays, each with what `more` adds to it. Raises InputError as `load` does."""
    tensors = check(source, config)
    for name in names(config):
        tensor = np.asarray(tensors[name][:], np.float32)
        yield name, tensor + more[name]() if name in more else tensor


def fingerprint(source: Path) -> str:
    """A hash that tells one set of weights from another without reading them all: SHA-256 over the config of a folder
    and, for each weight file, its size and the first and last MiB."""
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
    """SHA-256 over the bytes of all parameters in their tree's order: two runs agree only bit by bit."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        for part in _readable(leaf):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)  # bfloat16 has no buffer
    return digest.hexdigest()


def _readable(leaf: Any) -> Iterator[Any]:
    """The values in their order. Of an array that other processes hold parts of, a layer at a time, which each process
    then holds whole for a moment."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        yield leaf
        return
    stacked = leaf if leaf.ndim > 2 else leaf[None]
    for i in range(len(stacked)):
        yield _layer(stacked, i, sharding=replicated(leaf.sharding.mesh))


@functools.partial(jax.jit, static_argnames="sharding")
def _layer(stack: jax.Array, index: int, *, sharding: NamedSharding) -> jax.Array:
    layer = jax.lax.dynamic_index_in_dim(stack, index, 0, keepdims=False)
    return jax.lax.with_sharding_constraint(layer, sharding)


def _is_entry(node: object) -> bool:
    return isinstance(node, Entry)


def _files(folder: Path) -> list[Path]:
    """The weight files: safetensors or, where there are none, PyTorch's."""
    for stem, kind in (("model", "safetensors"), ("pytorch_model", "bin")):
        index, whole = folder / f"{stem}.{kind}.index.json", folder / f"{stem}.{kind}"
        if index.is_file():
            files = [folder / name for name in _indexed(index)]
            if missing := [file.name for file in files if not file.is_file()]:
                raise InputError(f"{folder} lacks the weight files {', '.join(missing)} that {index.name} lists")
            return files
        if whole.is_file():
            return [whole]
    raise InputError(f"{folder} has no weights: expected model.safetensors, pytorch_model.bin, or an index of several")


def _indexed(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is not an index of weights ({error!r}); download the model again") from error


def _open(source: Path) -> dict[str, Any]:
    """All tensors of a model by Hugging Face name, as lazy slices."""
    if Path(source).is_file():
        return gguf.tensors(source)
    tensors = {}
    for path in _files(Path(source)):
        if path.suffix == ".bin":
            tensors |= torch_files.tensors(path)
            continue
        try:
            file = safe_open(path, framework="np")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a readable safetensors file ({error}); download it again") from error
        tensors |= {name: file.get_slice(name) for name in file.keys()}
    return tensors


def read_model(source: Path) -> ModelConfig:
    """The model that a Hugging Face folder or a GGUF file holds, as `read_config` says. There is one exception: if the
    config is tied, but the files have an output projection that differs from the embedding table, the output projection
    is used, as in transformers 5.

    Raises InputError as `read_config` does, and for weights that cannot be opened.
    """
    config = read_config(source)
    if not config.tied or Path(source).is_file():
        return config
    tensors = _open(source)
    if _HEAD not in tensors or _EMBED not in tensors or _same(tensors[_HEAD], tensors[_EMBED]):
        return config
    return dataclasses.replace(config, tied=False)


def _same(one: Any, other: Any) -> bool:
    """Whether two lazy tensors hold the same numbers."""
    if list(one.get_shape()) != list(other.get_shape()):
        return False
    count, *rest = one.get_shape()
    rows = max(1, _CHUNK // math.prod(rest))
    parts = [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
    return all(np.array_equal(one[part], other[part]) for part in parts)


def check(source: Path, config: ModelConfig) -> dict[str, Any]:
    """Open the tensors of a Hugging Face folder or GGUF file, as lazy slices by Hugging Face name.

    Raises InputError listing all that do not match `config`.
    """
    tensors = _open(source)
    expected = names(config)
    # Buffers that old exports carry, and the copy of a tied table that some keep (see read_model).
    ignored = {name for name in tensors if name.endswith("rotary_emb.inv_freq")}
    if config.tied:
        ignored.add(_HEAD)
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

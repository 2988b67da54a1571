"""Attention: over a whole row (in training and prefill), and of one new token over the cache (in decoding).

One of three kernels computes whole rows. It is chosen once for a run, and kept in ModelConfig.attention. "splash" on
TPUs and "cudnn" on NVIDIA GPUs never hold the scores [T, T] of a row. "xla" runs everywhere, and holds those of one
layer at a time. What attends over the cache is chosen too, and kept in ModelConfig.decode_attention: "triton", a kernel
of ours for NVIDIA GPUs, or "xla".
"""

import functools
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec

from ttrl_jax.errors import InputError
from ttrl_jax.model.cache import LayerCache, blocks_read
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.sharding import partition

_NEVER = -1e30  # finite, so that a row with nothing to attend to gives numbers and not NaN
_DECODE_HEADS = (16, 32, 64, 128, 256)
_TILE_BYTES = 16 * 1024  # of keys, and of values; two of each on their way take 70 KiB of shared memory, of 99 or more
_LEAST_TILE = 16  # places: Triton's products have no fewer
_SPLASH_BLOCKS = (512, 256, 128)  # tokens; the last is a TPU's vector width, which rows must be a multiple of


def choose(wanted: str, *, device: jax.Device, config: ModelConfig, dtype: jnp.dtype, length: int) -> tuple[str, str]:
    """The kernel for whole rows, and why, in words.

    wanted: "auto", "xla", "cudnn" or "splash". device: one of the devices that the programs are compiled for. dtype:
    the type of queries, keys and values. length: tokens of the longest row, with padding. Raises InputError if `wanted`
    cannot run.
    """
    name = {"tpu": "splash", "gpu": "cudnn"}.get(device.platform, "xla") if wanted == "auto" else wanted
    obstacle = _obstacle(name, device, config, dtype, length)
    if obstacle is None:
        return name, f"by model.attention={wanted!r}, on {device.device_kind}"
    if wanted == "auto":
        return "xla", f"because {obstacle}"
    raise InputError(f"model.attention={wanted!r} cannot be used: {obstacle}; set it to 'auto' or 'xla'")


def _obstacle(name: str, device: jax.Device, config: ModelConfig, dtype: jnp.dtype, length: int) -> str | None:
    """What keeps a kernel from running, as a clause; None if nothing does."""
    if name == "xla":
        return None
    if len(set(windows(config, length))) > 1:
        return f"{name} needs one window for all layers, and the windows of this model's layers differ"
    if name == "splash":
        return None if device.platform == "tpu" else f"splash runs on TPUs, and this is {device.device_kind}"
    if (obstacle := _obstacle_of_device(name, device)) is not None:
        return obstacle
    largest = 256 if _capability(device) >= (9, 0) else 128
    if dtype != jnp.bfloat16:
        return f"cudnn computes in bfloat16, and model.dtype is {jnp.dtype(dtype).name}"
    if config.head_dim % 8 or config.head_dim > largest:
        return f"cudnn needs a head size that is a multiple of 8 up to {largest}, and it is {config.head_dim}"
    return None


def _obstacle_of_device(name: str, device: jax.Device) -> str | None:
    if device.platform != "gpu" or not re.fullmatch(r"\d+\.\d+", device.compute_capability):  # AMD's are as "gfx942"
        return f"{name} runs on NVIDIA GPUs, and this is {device.device_kind}"
    if _capability(device) < (8, 0):
        return f"{name} needs compute capability 8.0, and {device.device_kind} has {device.compute_capability}"
    return None


def _capability(device: jax.Device) -> tuple[int, ...]:
    return tuple(int(part) for part in device.compute_capability.split("."))


def choose_decode(
    wanted: str, *, whole: str, device: jax.Device, config: ModelConfig, dtype: jnp.dtype
) -> tuple[str, str]:
    """What attends over the cache, "triton" or "xla", and why, in words.

    wanted: "auto", "xla" or "triton". whole: what is wanted for whole rows; "xla" there is for no kernels at all, but
    those that `wanted` names. Others as in `choose`. Raises InputError if `wanted` cannot run.
    """
    if wanted == "auto" and whole == "xla":
        return "xla", "by model.attention='xla'"
    if wanted == "xla":
        return "xla", "by model.decode_attention='xla'"
    obstacle = _obstacle_of_decode(device, config, dtype)
    if obstacle is None:
        return "triton", f"by model.decode_attention={wanted!r}"
    if wanted == "auto":
        return "xla", f"because {obstacle}"
    raise InputError(f"model.decode_attention={wanted!r} cannot be used: {obstacle}; set it to 'auto' or 'xla'")


def _obstacle_of_decode(device: jax.Device, config: ModelConfig, dtype: jnp.dtype) -> str | None:
    if (obstacle := _obstacle_of_device("triton", device)) is not None:
        return obstacle
    if jax.__version_info__[:3] == (0, 11, 1):  # https://github.com/jax-ml/jax/pull/39547
        return "jax 0.11.1 lowers to triton for some GPUs alone; any other version does for all"
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"triton computes in bfloat16 and float32 here, and model.dtype is {jnp.dtype(dtype).name}"
    if config.head_dim not in _DECODE_HEADS:
        return f"triton needs a head size of {_DECODE_HEADS}, and it is {config.head_dim}"
    return None


def tile_places(head_dim: int, dtype: jnp.dtype, *, block: int) -> int:
    """How many places of a ring "triton" reads at once: a part of the `block` places that its size is a multiple of."""
    return math.gcd(block, max(_LEAST_TILE, _TILE_BYTES // (head_dim * jnp.dtype(dtype).itemsize)))


def windows(config: ModelConfig, length: int) -> tuple[int | None, ...]:
    """The window of each layer; None for a window that is not shorter than a row of `length` tokens, and hides
    nothing."""
    each = config.windows or (None,) * config.layers
    return tuple(None if window is None or window >= length else window for window in each)


def causal(
    q: jax.Array, k: jax.Array, v: jax.Array, window: int | jax.Array | None = None, *, kernel: str, rows: str
) -> jax.Array:
    """Causal grouped-query attention within rows. Scores and softmax in float32.

    q [R, T, N, H], k and v [R, T, K, H] -> [R, T, N, H]. Rows are padded on the right, so the causal mask is the only
    one needed: no real token sees a later padding token. With a window a token sees only the last `window` tokens,
    itself among them; only with the kernel "xla" may it be traced (int32 []). kernel: as `choose` returns it. rows:
    the logical axis of R.
    """
    if kernel == "xla":
        # Like the kernels, it keeps no scores for the backward pass, but computes them again.
        return jax.checkpoint(functools.partial(_xla, window=window))(q, k, v)
    attend = functools.partial({"cudnn": _cudnn, "splash": _splash}[kernel], window=window)
    return _on_each_device(attend, q, k, v, rows)


def _on_each_device(attend: Callable, q: jax.Array, k: jax.Array, v: jax.Array, rows: str) -> jax.Array:
    """attend(q, k, v) on the rows and heads of each device of the mesh: XLA does not know how to split a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(q, k, v)
    query, key = (partition((rows, None, heads, None), x.shape, mesh) for heads, x in (("heads", q), ("kv_heads", k)))
    if query != key:  # fewer kv heads than devices to split the queries' heads over: each gets those it needs
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    return jax.shard_map(attend, in_specs=(query,) * 3, out_specs=query, check_vma=False)(q, k, v)


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, *, window: int | jax.Array | None) -> jax.Array:
    mask = None
    if window is not None:
        at = jnp.arange(q.shape[1])
        mask = (at[:, None] - at < window)[None, None]  # [1, 1, T, T]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="xla")


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, *, window: int | None) -> jax.Array:
    left = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=left, implementation="cudnn")


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, *, window: int | None) -> jax.Array:
    """Splash attention of JAX's own Pallas kernels, on rows padded to a multiple of its blocks."""
    length, heads = q.shape[1:3]
    smallest = _SPLASH_BLOCKS[-1]
    padded = -(-length // smallest) * smallest
    block = next(size for size in _SPLASH_BLOCKS if padded % size == 0)
    passes = ("q", "kv", "q_dkv", "kv_dkv", "q_dq", "kv_dq")  # forward; backward to keys and values; and to queries
    sizes = splash.BlockSizes(**{f"block_{name}": block for name in passes})
    square = (padded, padded)
    mask = splash_mask.CausalMask(square) if window is None else splash_mask.LocalMask(square, (window - 1, 0), 0)
    attend = splash.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1
    )
    pad = [(0, 0), (0, padded - length), (0, 0), (0, 0)]
    q, k, v = (jnp.pad(x, pad).swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    return jax.vmap(attend)(q, k, v).swapaxes(1, 2)[:, :length]


def cached(
    q: jax.Array,
    prefix: LayerCache,
    prefix_lengths: jax.Array,
    suffix: LayerCache,
    lengths: jax.Array,
    at: jax.Array,
    window: int | None = None,
    *,
    block: int | None = None,
    kernel: str = "xla",
) -> jax.Array:
    """Attention of one new token of each vote over its prompt, held once, and over its own tokens so far.

    q [P, V, N, H]; prefix k and v [P, K, T, H] shared by the votes, of which prefix_lengths [P] are real; suffix k and
    v [P, V, K, S, H], rings that hold the new token at place `at` and before it lengths [P, V] tokens of the vote.
    Returns [P, V, N, H]. One softmax over both parts, in float32.
    With a window only the last `window` tokens are seen, the new one among them, wherever they are held.
    block: read the rings block by block, S a multiple of it, and only the blocks in which the longest vote has tokens;
    None: read them whole. kernel: as `choose_decode` returns it; "triton" reads as many blocks of each vote as it has
    tokens in, and needs `block`. All of them differ in rounding alone.
    """
    p, v, n, h = q.shape
    kv_heads = prefix.k.shape[1]
    q = q.reshape(p, v, kv_heads, n // kv_heads, h)
    to_prefix = jnp.einsum("pvkgh,pkth->pvkgt", q, prefix.k, preferred_element_type=jnp.float32) * h**-0.5
    place = jnp.arange(prefix.k.shape[2])
    real = (place < prefix_lengths[:, None])[:, None]  # [P, 1, T]
    if window is not None:
        real = real & ((prefix_lengths[:, None] + lengths)[..., None] - place < window)
    to_prefix = jnp.where(real[:, :, None, None], to_prefix, _NEVER)
    by_blocks = functools.partial(_by_kernel if kernel == "triton" else _by_blocks, block=block)
    attend = _whole if block is None else by_blocks
    out = attend(q, to_prefix, prefix.v, suffix, lengths, at, window)
    return out.astype(q.dtype).reshape(p, v, n, h)


def _to_suffix(q: jax.Array, k: jax.Array, lengths: jax.Array, age: jax.Array, window: int | None) -> jax.Array:
    """Scores of the votes' own tokens k [P, V, K, S, H], float32 [P, V, K, G, S]. age int32 [S], 0: the new token."""
    scores = jnp.einsum("pvkgh,pvksh->pvkgs", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    filled = age <= lengths[..., None]  # [P, V, S]
    if window is not None:
        filled &= age < window
    return jnp.where(filled[:, :, None, None], scores, _NEVER)


# In this order of the operands: XLA's CPU backend refuses the other one in bfloat16.
def _of_prefix(weights: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.einsum("pkth,pvkgt->pvkgh", v, weights, preferred_element_type=jnp.float32)


def _of_suffix(weights: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.einsum("pvkgs,pvksh->pvkgh", weights, v, preferred_element_type=jnp.float32)


def _whole(q, to_prefix, prefix_v, suffix, lengths, at, window):
    places = suffix.k.shape[3]
    to_suffix = _to_suffix(q, suffix.k, lengths, (at - jnp.arange(places)) % places, window)
    top = jnp.maximum(to_prefix.max(-1, keepdims=True), to_suffix.max(-1, keepdims=True))
    w_prefix, w_suffix = jnp.exp(to_prefix - top), jnp.exp(to_suffix - top)
    total = w_prefix.sum(-1, keepdims=True) + w_suffix.sum(-1, keepdims=True)
    w_prefix, w_suffix = (w_prefix / total).astype(q.dtype), (w_suffix / total).astype(q.dtype)
    return _of_prefix(w_prefix, prefix_v) + _of_suffix(w_suffix, suffix.v)


def _by_blocks(q, to_prefix, prefix_v, suffix, lengths, at, window, *, block):
    """The softmax of one pass: what there is so far is scaled down where a later block has a higher score
    (arXiv 1805.02867). On a TPU a block's slice is part of its product, so that nothing is copied."""
    places = suffix.k.shape[3]
    before = lengths.max() if window is None else jnp.minimum(lengths.max(), window - 1)
    count = blocks_read(before, at, places=places, block=block)

    def more(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out, top, total = state
        start = (at // block - i) % (places // block) * block
        k, v = (jax.lax.dynamic_slice_in_dim(x, start, block, axis=3) for x in (suffix.k, suffix.v))
        scores = _to_suffix(q, k, lengths, (at - start - jnp.arange(block)) % places, window)
        higher = jnp.maximum(top, scores.max(-1, keepdims=True))
        weights, less = jnp.exp(scores - higher), jnp.exp(top - higher)
        out = out * less + _of_suffix(weights.astype(q.dtype), v)
        return out, higher, total * less + weights.sum(-1, keepdims=True)

    out, _, total = jax.lax.fori_loop(0, count, more, _of_prompt(q, to_prefix, prefix_v))
    return out / total


def _of_prompt(q: jax.Array, to_prefix: jax.Array, prefix_v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The softmax over the prompt, to be merged with others: the weighted sum of values, the highest score, and the sum
    of weights, which are relative to it."""
    top = to_prefix.max(-1, keepdims=True)
    weights = jnp.exp(to_prefix - top)
    return _of_prefix(weights.astype(q.dtype), prefix_v), top, weights.sum(-1, keepdims=True)


def _by_kernel(q, to_prefix, prefix_v, suffix, lengths, at, window, *, block):
    """The kernel, on the votes and kv heads of each device of the mesh, which lie as the cache does."""
    from ttrl_jax.model import decode_kernel  # what it imports takes time, and is for GPUs alone

    tile, mesh = tile_places(q.shape[-1], q.dtype, block=block), jax.sharding.get_abstract_mesh()
    attend = functools.partial(decode_kernel.attend, window=window, tile=tile)
    if not mesh.empty:
        split = partition(("prompts", "votes", "kv_heads"), q.shape[:3], mesh)
        of_votes, one = PartitionSpec(*split[:2]), PartitionSpec()
        specs = (split, split, split, of_votes, one)
        attend = jax.shard_map(attend, in_specs=specs, out_specs=(split,) * 3, check_vma=False)
    own, own_top, own_total = attend(q, suffix.k, suffix.v, lengths, at)
    out, top, total = _of_prompt(q, to_prefix, prefix_v)
    own_top, own_total = own_top[..., None], own_total[..., None]
    higher = jnp.maximum(top, own_top)
    less, own_less = jnp.exp(top - higher), jnp.exp(own_top - higher)
    return (out * less + own * own_less) / (total * less + own_total * own_less)

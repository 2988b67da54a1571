"""Attention: over a whole row (in training and prefill), and of one new token over the cache (in decoding).

One of three kernels computes whole rows. It is chosen once for a run, and kept in ModelConfig.attention. "splash" on
TPUs and "cudnn" on NVIDIA GPUs never hold the scores [T, T] of a row. "xla" runs everywhere, and holds those of one
layer at a time.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from ttrl_jax.errors import InputError
from ttrl_jax.model.cache import LayerCache
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.sharding import partition

_NEVER = -1e30  # finite, so that a row with nothing to attend to gives numbers and not NaN
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
    if device.platform != "gpu" or not re.fullmatch(r"\d+\.\d+", device.compute_capability):  # AMD's are as "gfx942"
        return f"cudnn runs on NVIDIA GPUs, and this is {device.device_kind}"
    capability = tuple(int(part) for part in device.compute_capability.split("."))
    largest = 256 if capability >= (9, 0) else 128
    if capability < (8, 0):
        return f"cudnn needs compute capability 8.0, and {device.device_kind} has {device.compute_capability}"
    if dtype != jnp.bfloat16:
        return f"cudnn computes in bfloat16, and model.dtype is {jnp.dtype(dtype).name}"
    if config.head_dim % 8 or config.head_dim > largest:
        return f"cudnn needs a head size that is a multiple of 8 up to {largest}, and it is {config.head_dim}"
    return None


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
) -> jax.Array:
    """Attention of one new token of each vote over its prompt, held once, and over its own tokens so far.

    q [P, V, N, H]; prefix k and v [P, K, T, H] shared by the votes, of which prefix_lengths [P] are real; suffix k and
    v [P, V, K, S, H], rings that hold the new token at place `at` and before it lengths [P, V] tokens of the vote.
    Returns [P, V, N, H]. One softmax over both parts, in float32.
    With a window only the last `window` tokens are seen, the new one among them, wherever they are held.
    """
    p, v, n, h = q.shape
    kv_heads = prefix.k.shape[1]
    q = q.reshape(p, v, kv_heads, n // kv_heads, h)
    f32 = dict(preferred_element_type=jnp.float32)
    to_prefix = jnp.einsum("pvkgh,pkth->pvkgt", q, prefix.k, **f32) * h**-0.5
    to_suffix = jnp.einsum("pvkgh,pvksh->pvkgs", q, suffix.k, **f32) * h**-0.5
    place = jnp.arange(prefix.k.shape[2])
    real = (place < prefix_lengths[:, None])[:, None]  # [P, 1, T]
    age = (at - jnp.arange(suffix.k.shape[3])) % suffix.k.shape[3]  # 0: the new token
    filled = age <= lengths[..., None]  # [P, V, S]
    if window is not None:
        real = real & ((prefix_lengths[:, None] + lengths)[..., None] - place < window)
        filled &= age < window
    to_prefix = jnp.where(real[:, :, None, None], to_prefix, _NEVER)
    to_suffix = jnp.where(filled[:, :, None, None], to_suffix, _NEVER)
    top = jnp.maximum(to_prefix.max(-1, keepdims=True), to_suffix.max(-1, keepdims=True))
    w_prefix, w_suffix = jnp.exp(to_prefix - top), jnp.exp(to_suffix - top)
    total = w_prefix.sum(-1, keepdims=True) + w_suffix.sum(-1, keepdims=True)
    w_prefix, w_suffix = (w_prefix / total).astype(q.dtype), (w_suffix / total).astype(q.dtype)
    # In this order of the operands: XLA's CPU backend refuses the other one in bfloat16.
    out = jnp.einsum("pkth,pvkgt->pvkgh", prefix.v, w_prefix, **f32)
    out = out + jnp.einsum("pvkgs,pvksh->pvkgh", w_suffix, suffix.v, **f32)
    return out.astype(q.dtype).reshape(p, v, n, h)

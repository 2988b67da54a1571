"""The one door to attention: over a whole row (training, prefill) and of one new token over the cache (decoding)."""

import jax
import jax.numpy as jnp

from ttrl_jax.model.cache import LayerCache

_NEVER = -1e30  # finite, so that a row with nothing to attend to gives numbers and not NaN


def causal(q: jax.Array, k: jax.Array, v: jax.Array, window: int | jax.Array | None = None) -> jax.Array:
    """Causal grouped-query attention within rows. Scores and softmax in float32.

    q [R, T, N, H], k and v [R, T, K, H] -> [R, T, N, H]. Rows are padded on the right, so the causal mask is the only
    one needed: no real token sees a later padding token. With a window (int32 []) a token sees only the last `window`
    tokens, itself among them.
    """
    mask = None
    if window is not None:
        at = jnp.arange(q.shape[1])
        mask = (at[:, None] - at < window)[None, None]  # [1, 1, T, T]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="xla")


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

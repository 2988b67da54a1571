"""Flax NNX modules of the decoder.

Every parameter of a block carries a leading layer axis [L, ...]. Under the scan over layers, or after taking one layer
out, the same module computes with that axis gone.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.rope import frequencies
from ttrl_jax.model.sharding import Axes, constrain

Rotation = tuple[jax.Array, jax.Array]  # cosines and sines, float32 [..., 1, H / 2]

PRODUCT = "product with weights"  # the name of what a backward pass may keep of a layer, and compute the rest again
INIT_STD = 0.02  # transformers' initializer_range for all families


def parameter(rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, *, init: str = "normal") -> nnx.Param:
    """Declare a parameter once: float32, with the logical names of its axes (see sharding.RULES)."""
    if init == "normal":
        value = jax.random.normal(rngs.params(), shape, jnp.float32) * INIT_STD
    else:
        value = {"ones": jnp.ones, "zeros": jnp.zeros}[init](shape, jnp.float32)
    return nnx.Param(value, axes=axes)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x [..., D] over its root mean square, in float32 (arXiv 1910.07467); the scale is applied in x's type."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
    return y.astype(x.dtype) * jnp.broadcast_to(scale.astype(x.dtype), x.shape)


def rotation_at(positions: jax.Array, config: ModelConfig) -> Rotation:
    """Cosines and sines of the angles by which the pairs of a head are turned at positions [...]."""
    positions = positions[..., None, None].astype(jnp.float32)
    angles = positions * jnp.expand_dims(frequencies(config.rope, config.head_dim), range(positions.ndim - 1))
    return jnp.cos(angles) * config.rope.scale, jnp.sin(angles) * config.rope.scale


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotary embedding (arXiv 2104.09864), halves rotated as transformers does. x [..., heads, H]."""
    cos, sin = rotation
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


@jax.custom_vjp
def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [..., M] times weight [M, N], multiplied in x's type, added up in float32 -> [..., N] in x's type.

    The gradient of the weight stays as it is added up, in float32. It is spelled out because what JAX derives from such
    a product multiplies in float32, which takes a CPU twice as long as bfloat16.
    """
    return _times(x, weight.astype(x.dtype), "...m,mn->...n")


def _times(x: jax.Array, y: jax.Array, axes: str) -> jax.Array:
    return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32).astype(x.dtype)


def _product_forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, weight), (x, weight)


def _product_backward(kept: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = kept
    rows = tuple(range(x.ndim - 1))
    of_weight = jnp.tensordot(x, slope, (rows, rows), preferred_element_type=jnp.float32)
    return _times(slope, weight.astype(x.dtype), "...n,mn->...m"), of_weight.astype(weight.dtype)


product.defvjp(_product_forward, _product_backward)

HEADS = ("heads", "kv_heads", "kv_heads")  # the logical axes of the heads of queries, keys and values
Pair = dict[str, jax.Array]  # {"a": [*inputs, r], "b": [r, *outputs]}, the adapters of one weight


def project(
    x: jax.Array, weights: dict[str, jax.Array], adapters: dict[str, Pair], scale: float, *, inputs: int = 1
) -> tuple[jax.Array, ...]:
    """The products of x [..., *inputs] with weights [*inputs, *outputs], by name -> [..., *outputs] each, in x's type.

    inputs: how many axes are summed over. adapters: of some of the weights, by name, to whose products
    scale * (x a) b is added (lora.py). Weights that have adapters get no gradient.
    """
    lead = x.shape[: x.ndim - inputs]
    flat = x.reshape(*lead, -1)
    matrices = {name: weight.reshape(flat.shape[-1], -1) for name, weight in weights.items()}
    names = [name for name in weights if name in adapters]
    found = {name: product(flat, matrices[name]) for name in weights if name not in adapters}
    if names:
        pairs = tuple(_matrices(adapters[name], flat.shape[-1]) for name in names)
        found |= dict(zip(names, adapted(flat, tuple(matrices[name] for name in names), pairs, scale), strict=True))
    kept = {name: checkpoint_name(y, PRODUCT) for name, y in found.items()}
    return tuple(kept[name].reshape(*lead, *weight.shape[inputs:]) for name, weight in weights.items())


def _matrices(pair: Pair, inputs: int) -> tuple[jax.Array, jax.Array]:
    a, b = pair["a"], pair["b"]
    return a.reshape(inputs, a.shape[-1]), b.reshape(len(b), -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def adapted(
    x: jax.Array, weights: tuple[jax.Array, ...], pairs: tuple[tuple[jax.Array, jax.Array], ...], scale: float
) -> tuple[jax.Array, ...]:
    """x W + scale * (x A) B for each weight [M, N] and its pair [M, r], [r, N]: x [..., M] -> [..., N], in x's type.

    Both products are added up in float32 and rounded once: where the first were rounded before, a second of less than
    half its last digit would be lost. All x A are one product. Gradients are those of x and the pairs alone.
    """
    return _adapted_forward(x, weights, pairs, scale)[0]


def _adapted_forward(x, weights, pairs, scale):
    thin = _times(x, _side_by_side(pairs, x.dtype), "...m,mr->...r")
    f32 = dict(preferred_element_type=jnp.float32)
    outputs = tuple(
        (
            jnp.einsum("...m,mn->...n", x, weight.astype(x.dtype), **f32)
            + scale * jnp.einsum("...r,rn->...n", own, b.astype(x.dtype), **f32)
        ).astype(x.dtype)
        for weight, own, (_, b) in zip(weights, _apart(thin, pairs), pairs, strict=True)
    )
    return outputs, (x, thin, weights, pairs)


def _adapted_backward(scale, kept, slopes):
    x, thin, weights, pairs = kept
    rows, f32 = tuple(range(x.ndim - 1)), dict(preferred_element_type=jnp.float32)
    slopes = tuple(slope.astype(x.dtype) for slope in slopes)
    of_thin = [
        (scale * jnp.einsum("...n,rn->...r", slope, b.astype(x.dtype), **f32)).astype(x.dtype)
        for slope, (_, b) in zip(slopes, pairs, strict=True)
    ]
    to_x = jnp.einsum("...r,mr->...m", jnp.concatenate(of_thin, -1), _side_by_side(pairs, x.dtype), **f32)
    for slope, weight in zip(slopes, weights, strict=True):
        to_x = to_x + jnp.einsum("...n,mn->...m", slope, weight.astype(x.dtype), **f32)
    to_pairs = tuple(
        (
            jnp.tensordot(x, of_own, (rows, rows), **f32).astype(a.dtype),
            (scale * jnp.tensordot(own, slope, (rows, rows), **f32)).astype(b.dtype),
        )
        for own, of_own, slope, (a, b) in zip(_apart(thin, pairs), of_thin, slopes, pairs, strict=True)
    )
    return to_x.astype(x.dtype), None, to_pairs


def _side_by_side(pairs, dtype: jnp.dtype) -> jax.Array:
    return jnp.concatenate([a.astype(dtype) for a, _ in pairs], -1)


def _apart(thin: jax.Array, pairs) -> list[jax.Array]:
    rank = pairs[0][0].shape[-1]
    return [thin[..., i * rank : (i + 1) * rank] for i in range(len(pairs))]


adapted.defvjp(_adapted_forward, _adapted_backward)


class Attention(nnx.Module):
    """Projections of grouped-query attention. What is attended to is the caller's business."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        layers, d, n, k, h = config.layers, config.width, config.heads, config.kv_heads, config.head_dim
        self.eps, self.scale = config.norm_eps, config.lora.scale if config.lora else 0.0
        self.q = parameter(rngs, (layers, d, n, h), (None, "embed", "heads", None))
        self.k = parameter(rngs, (layers, d, k, h), (None, "embed", "kv_heads", None))
        self.v = parameter(rngs, (layers, d, k, h), (None, "embed", "kv_heads", None))
        self.o = parameter(rngs, (layers, n, h, d), (None, "heads", None, "embed"))
        self.bias = config.qkv_bias
        if config.qkv_bias:
            self.q_bias = parameter(rngs, (layers, n, h), (None, "heads", None), init="zeros")
            self.k_bias = parameter(rngs, (layers, k, h), (None, "kv_heads", None), init="zeros")
            self.v_bias = parameter(rngs, (layers, k, h), (None, "kv_heads", None), init="zeros")
        self.norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = parameter(rngs, (layers, h), (None, None), init="ones")
            self.k_norm = parameter(rngs, (layers, h), (None, None), init="ones")

    def qkv(
        self, x: jax.Array, rotation: Rotation, adapters: dict[str, Pair], within: Axes
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [..., D] -> rotated queries [..., N, H], rotated keys and values [..., K, H]. within: as in Block."""
        q, k, v = project(x, {"q": self.q[...], "k": self.k[...], "v": self.v[...]}, adapters, self.scale)
        q, k, v = (constrain(y, *within, heads, None) for y, heads in zip((q, k, v), HEADS, strict=True))
        if self.bias:
            biases = ((q, self.q_bias), (k, self.k_bias), (v, self.v_bias))
            q, k, v = (y + jnp.broadcast_to(b[...].astype(x.dtype), y.shape) for y, b in biases)
        if self.norm:
            q, k = (rms_norm(y, scale[...], self.eps) for y, scale in ((q, self.q_norm), (k, self.k_norm)))
        return rotate(q, rotation), rotate(k, rotation), v

    def out(self, x: jax.Array, adapters: dict[str, Pair]) -> jax.Array:
        """x [..., N, H] -> [..., D]."""
        return project(x, {"o": self.o[...]}, adapters, self.scale, inputs=2)[0]


@jax.checkpoint
def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up, [..., F] each, rounded to their type once, at the end, where a CPU would round each step. Only
    the two are kept for gradients."""
    return (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)


class FeedForward(nnx.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        layers, d, f = config.layers, config.width, config.ffn
        self.scale = config.lora.scale if config.lora else 0.0
        self.gate = parameter(rngs, (layers, d, f), (None, "embed", "ffn"))
        self.up = parameter(rngs, (layers, d, f), (None, "embed", "ffn"))
        self.down = parameter(rngs, (layers, f, d), (None, "ffn", "embed"))

    def __call__(self, x: jax.Array, adapters: dict[str, Pair], within: Axes) -> jax.Array:
        gate, up = project(x, {"gate": self.gate[...], "up": self.up[...]}, adapters, self.scale)
        gate, up = (constrain(y, *within, "ffn") for y in (gate, up))
        return project(gated(gate, up), {"down": self.down[...]}, adapters, self.scale)[0]


class Block(nnx.Module):
    """One layer of the decoder (all L of them, stacked)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.eps = config.norm_eps
        self.attention_norm = parameter(rngs, (config.layers, config.width), (None, "embed"), init="ones")
        self.attention = Attention(config, rngs)
        self.ffn_norm = parameter(rngs, (config.layers, config.width), (None, "embed"), init="ones")
        self.ffn = FeedForward(config, rngs)

    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation,
        attend: Callable,
        adapters: dict[str, dict[str, Pair]] | None,
        within: Axes,
    ) -> tuple[jax.Array, object]:
        """x [..., D]; attend(q, k, v) -> (context [..., N, H], whatever the caller keeps of k and v). adapters: of this
        layer, by the names of its modules and weights, if there are any. within: the logical axes of [...] in attention
        and ffn, where the heads and the ffn are split over devices. Left to itself, XLA would gather their weights
        where x comes with its places split."""
        of_attention, of_ffn = ((adapters or {}).get(name, {}) for name in ("attention", "ffn"))
        q, k, v = self.attention.qkv(rms_norm(x, self.attention_norm[...], self.eps), rotation, of_attention, within)
        context, kept = attend(q, k, v)
        x = x + self.attention.out(context, of_attention)
        return x + self.ffn(rms_norm(x, self.ffn_norm[...], self.eps), of_ffn, within), kept


class Decoder(nnx.Module):
    """Embedding, L blocks, final norm, output projection [W, D] (the embedding table itself when tied)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.embed = parameter(rngs, (config.vocab, config.width), ("vocab", "embed"))
        self.blocks = Block(config, rngs)
        self.norm = parameter(rngs, (config.width,), ("embed",), init="ones")
        if not config.tied:
            self.head = parameter(rngs, (config.vocab, config.width), ("vocab", "embed"))

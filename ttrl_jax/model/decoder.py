"""The decoder as pure functions over a nested dict of arrays: what other rooms see.

`forward` scans over the stacked layers (training). `prefill` and `decode_step` take the weights laid out for sampling
by `sampling_weights`: one tree per layer, so that no step of the decode loop slices the stack again.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ttrl_jax.model import attention
from ttrl_jax.model.cache import LayerCache, Prefix, Suffix
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.layers import Block, Decoder, Rotation, rms_norm, rotation_at
from ttrl_jax.model.packing import Packing
from ttrl_jax.model.sharding import constrain

Params = dict[str, Any]


@functools.lru_cache
def _abstract(config: ModelConfig) -> nnx.State:
    _, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))
    return state


@functools.lru_cache
def _block(config: ModelConfig) -> tuple[nnx.GraphDef, Any]:
    graph, state = nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))
    return graph, jax.tree.structure(state)


def _bind_block(config: ModelConfig, weights: Params) -> Block:
    graph, structure = _block(config)
    return nnx.merge(graph, jax.tree.unflatten(structure, jax.tree.leaves(weights)))


def shapes(config: ModelConfig) -> Params:
    """The parameters' tree with ShapeDtypeStructs (float32) for leaves."""
    return nnx.to_pure_dict(_abstract(config))


def logical_axes(config: ModelConfig) -> Params:
    """The parameters' tree with tuples of logical axis names for leaves."""
    state = _abstract(config)
    leaves = [variable.get_metadata()["axes"] for _, variable in nnx.to_flat_state(state)]
    return jax.tree.unflatten(jax.tree.structure(shapes(config)), leaves)


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Random parameters (normal, std 0.02; norms 1, biases 0), float32."""
    _, state = nnx.split(Decoder(config, nnx.Rngs(key)))
    return nnx.to_pure_dict(state)


def sampling_weights(params: Params, config: ModelConfig, dtype: jnp.dtype) -> Params:
    """A copy of the parameters for sampling: in `dtype`, layers apart (a tuple of L trees under "blocks")."""
    cast = jax.tree.map(lambda x: x.astype(dtype), params)
    blocks = tuple(jax.tree.map(lambda x, i=i: x[i], cast["blocks"]) for i in range(config.layers))
    return {**cast, "blocks": blocks}


def sampling_axes(config: ModelConfig) -> Params:
    """The tree of `sampling_weights` with tuples of logical axis names for leaves."""
    axes = logical_axes(config)
    block = jax.tree.map(lambda names: names[1:], axes["blocks"], is_leaf=lambda node: isinstance(node, tuple))
    return {**axes, "blocks": (block,) * config.layers}


def logits(weights: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Project final hidden states [..., D] to logits [..., W], accumulated and returned in float32."""
    head = output_table(weights, config).astype(hidden.dtype)
    return jnp.einsum("...d,wd->...w", hidden, head, preferred_element_type=jnp.float32)


def output_table(weights: Params, config: ModelConfig) -> jax.Array:
    """The output projection [W, D]: a table of its own, or the embedding's."""
    return weights["embed"] if config.tied else weights["head"]


def forward(
    params: Params,
    config: ModelConfig,
    ids: jax.Array,
    packing: Packing | None = None,
    *,
    dtype: jnp.dtype,
    remat: bool,
    unroll: bool = False,
) -> jax.Array:
    """Final hidden states of rows, after the last norm.

    ids int32 [R, T], left-aligned rows, or with a packing its tokens [X, N] -> [R, T, D] or [X, N, D] in `dtype`. With
    `remat` each layer is recomputed in the backward pass. With `unroll` the program has each layer anew instead of a
    loop over them: it is compiled for longer, but keeps what the backward pass needs where it was computed. The blocks
    of `params` may be a Tapped, which is for remat.
    """
    positions = packing.positions if packing else jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    rotation = rotation_at(positions, config)
    length = packing.rows.shape[2] if packing else ids.shape[1]
    x = constrain(params["embed"][ids].astype(dtype), "rows", None, None)  # the table's gradient adds up in float32
    windows = attention.windows(config, length)
    # One program serves all layers: a window that all have is part of it, others are scanned like the weights.
    mixed = len(set(windows)) > 1
    scanned = jnp.array([window or length for window in windows], jnp.int32) if mixed else None
    layer, blocks = functools.partial(_layer, config=config, window=windows[0]), params["blocks"]
    if isinstance(blocks, Tapped):
        x = _tapped(layer, x, blocks.weights, blocks.total, scanned, rotation, packing)
    else:

        def one(x: jax.Array, its: tuple[Params, jax.Array | None]) -> tuple[jax.Array, None]:
            return layer(x, *its, rotation, packing), None

        x, _ = jax.lax.scan(jax.checkpoint(one) if remat else one, x, (blocks, scanned), unroll=unroll)
    return rms_norm(x, params["norm"], config.norm_eps)


def _layer(
    x: jax.Array,
    weights: Params,
    own: jax.Array | None,
    rotation: Rotation,
    packing: Packing | None,
    *,
    config: ModelConfig,
    window: int | None,
) -> jax.Array:
    """own: the layer's window, where they differ; else `window` is that of all."""

    def attend(q, k, v):
        if packing:
            q, k, v = (packing.spread(y) for y in (q, k, v))
        seen = window if own is None else own
        context = attention.causal(q, k, v, seen, kernel=config.attention, rows="rows")
        return packing.gather(context) if packing else context, None

    x, _ = _bind_block(config, weights)(x, rotation, attend)
    return constrain(x, "rows", "places", None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tapped:
    """Layers whose gradients are added up where they are computed: the gradient to `total` is `total` plus that to
    `weights`, which itself gets none. So the gradients of all layers are never there beside their sums."""

    weights: Params  # of all layers, stacked
    total: Params  # float32, of the same shapes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tapped(layer, x, weights, total, scanned, rotation, packing):
    return _tapped_forward(layer, x, weights, total, scanned, rotation, packing)[0]


def _tapped_forward(layer, x, weights, total, scanned, rotation, packing):
    def one(x: jax.Array, its: tuple[Params, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        return layer(x, *its, rotation, packing), x

    last, inputs = jax.lax.scan(one, x, (weights, scanned))
    return last, (inputs, weights, total, scanned, rotation, packing)


def _tapped_back(layer, kept, slope):
    inputs, weights, total, scanned, rotation, packing = kept
    count = len(inputs)

    def one(i: jax.Array, state: tuple[jax.Array, Params]) -> tuple[jax.Array, Params]:
        slope, total = state
        at = count - 1 - i
        x, its, own = jax.tree.map(lambda stacked: stacked[at], (inputs, weights, scanned))
        _, back = jax.vjp(lambda x, its: layer(x, its, own, rotation, packing), x, its)
        slope, gradient = back(slope)
        return slope, jax.tree.map(lambda sums, own: sums.at[at].add(own), total, gradient)

    slope, total = jax.lax.fori_loop(0, count, one, (slope, total))
    return slope, None, total, None, None, None


_tapped.defvjp(_tapped_forward, _tapped_back)


def prefill(weights: Params, config: ModelConfig, ids: jax.Array, lengths: jax.Array) -> tuple[Prefix, jax.Array]:
    """Run the prompts once. ids int32 [P, T] padded on the right, lengths int32 [P] -> Prefix, and the logits after
    each prompt's last token, float32 [P, W]."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    rotation = rotation_at(positions, config)
    x = constrain(weights["embed"][ids], "prompts", None, None)

    layers = []
    for block, window in zip(weights["blocks"], attention.windows(config, ids.shape[1]), strict=True):

        def attend(q, k, v, window=window):
            heads_first = (constrain(y.swapaxes(1, 2), "prompts", "kv_heads", None, None) for y in (k, v))
            context = attention.causal(q, k, v, window, kernel=config.attention, rows="prompts")
            return context, LayerCache(*heads_first)

        x, kept = _bind_block(config, block)(x, rotation, attend)
        layers.append(kept)
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], 1)[:, 0]
    last = rms_norm(last, weights["norm"], config.norm_eps)
    return Prefix(tuple(layers), lengths), logits(weights, config, last)


def decode_step(
    weights: Params,
    config: ModelConfig,
    tokens: jax.Array,
    prefix: Prefix,
    suffix: Suffix,
    lengths: jax.Array,
    at: jax.Array,
    rotation: Rotation,
) -> tuple[jax.Array, Suffix]:
    """Feed each sample one more token of its response and get the logits for the next.

    tokens int32 [P, V]; lengths int32 [P, V], how many tokens of each response the suffix holds, fewer than it has
    places; at int32 [], the place of the ring that the new tokens take in every sample; rotation: at their positions
    [P, V]. Returns float32 [P, V, W] and the suffix with that place filled.
    """
    lengths = constrain(lengths, "prompts", "votes")  # else, where draws are split further, masks [P, V, S] are moved
    x = constrain(weights["embed"][tokens], "prompts", "votes", None)
    windows = attention.windows(config, prefix.layers[0].k.shape[2] + suffix[0].k.shape[3])
    filled = []
    for block, shared, own, window in zip(weights["blocks"], prefix.layers, suffix, windows, strict=True):

        def attend(q, k, v, shared=shared, own=own, window=window):
            own = LayerCache(
                *(
                    jax.lax.dynamic_update_slice_in_dim(cache, new[:, :, :, None], at, axis=3)
                    for cache, new in ((own.k, k), (own.v, v))
                )
            )
            return attention.cached(q, shared, prefix.lengths, own, lengths, at, window), own

        x, kept = _bind_block(config, block)(x, rotation, attend)
        filled.append(kept)
    x = rms_norm(x, weights["norm"], config.norm_eps)
    # Each part of the vocabulary where its weights are; then whole rows, for which otherwise the weights would move.
    split = constrain(logits(weights, config, x), "prompts", "votes", "vocab")
    return constrain(split, "prompts", "draws", None), tuple(filled)

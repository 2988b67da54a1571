"""The decoder as pure functions over a nested dict of arrays: what other rooms see.

`forward` scans over the stacked layers (training). `prefill` and `decode_step` take the weights laid out for sampling
by `sampling_weights`: one tree per layer, so that no step of the decode loop slices the stack again. Weights may have
adapters beside them, under "lora" (lora.py).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ttrl_jax.model import attention
from ttrl_jax.model.cache import LayerCache, Prefix, Suffix
from ttrl_jax.model.config import PROJECTIONS, ModelConfig
from ttrl_jax.model.int8 import is_int8, plain
from ttrl_jax.model.layers import HEADS, PRODUCT, Block, Decoder, Rotation, rms_norm, rotation_at
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


def _bind_block(config: ModelConfig, weights: Params, dtype: jnp.dtype) -> Block:
    graph, structure = _block(config)
    leaves = jax.tree.leaves(weights, is_leaf=is_int8)
    return nnx.merge(graph, jax.tree.unflatten(structure, [plain(leaf, dtype) for leaf in leaves]))


def at_products(change: Callable[[Any, int], Any], block: Params) -> Params:
    """One layer's tree with change(weight, the number of its axes that are summed over) for the weights of products."""
    changed = {room: dict(each) if isinstance(each, dict) else each for room, each in block.items()}
    for room, name, inputs in PROJECTIONS.values():
        changed[room][name] = change(block[room][name], inputs)
    return changed


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
    return {**cast, "blocks": apart(cast["blocks"], config)}


def apart(stacked: Any, config: ModelConfig) -> tuple[Any, ...]:
    """The trees of single layers out of one whose leaves are [L, ...]; the gradient to that is written once."""
    leaves, structure = jax.tree.flatten(stacked)
    split = [jax.lax.split(leaf, (1,) * config.layers) for leaf in leaves]
    return tuple(jax.tree.unflatten(structure, [parts[i][0] for parts in split]) for i in range(config.layers))


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
    remat: str,
    unroll: bool = False,
) -> jax.Array:
    """Final hidden states of rows, after the last norm.

    ids int32 [R, T], left-aligned rows, or with a packing its tokens [X, N] -> [R, T, D] or [X, N, D] in `dtype`.
    remat: what the backward pass computes again: nothing ("none"), all but the products with weights ("dots"), or whole
    layers ("full"). With `unroll` the program has each layer anew instead of a
    loop over them: it is compiled for longer, but keeps what the backward pass needs where it was computed. The blocks
    of `params` may be a Tapped, which is for "full"; or a tuple of layers, as in `sampling_weights`, with or without
    adapters, stacked, under "lora".
    """
    positions = packing.positions if packing else jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    rotation = tuple(constrain(y, "rows", None, None, None) for y in rotation_at(positions, config))
    length = packing.rows.shape[2] if packing else ids.shape[1]
    table = params["embed"]
    rows = table[ids].astype(dtype) if table.dtype == jnp.float32 else _rows(table, ids, dtype)
    x = constrain(rows, "rows", None, None)  # the table's gradient adds up in float32
    windows = attention.windows(config, length)
    # One program serves all layers: a window that all have is part of it, others are scanned like the weights.
    mixed = len(set(windows)) > 1
    scanned = jnp.array([window or length for window in windows], jnp.int32) if mixed else None
    layer, blocks = functools.partial(_layer, config=config, window=windows[0]), params["blocks"]
    if isinstance(blocks, tuple) and unroll:
        x = _one_by_one(params, config, x, windows, rotation, packing, remat=remat)
    elif isinstance(blocks, tuple):
        x = _looked_up(params, layer, x, scanned, rotation, packing, remat=remat)
    elif isinstance(blocks, Tapped):
        x = _tapped(layer, x, blocks.weights, blocks.total, scanned, rotation, packing)
    else:

        def one(x: jax.Array, its: tuple[Params, jax.Array | None]) -> tuple[jax.Array, None]:
            return layer(x, *its, rotation, packing), None

        x, _ = jax.lax.scan(_again(one, remat), x, (blocks, scanned), unroll=unroll)
    return rms_norm(x, params["norm"], config.norm_eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows(table: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of a table in bfloat16. Of a token that comes a thousand times as many gradients are added, which in
    bfloat16 would stop to count long before the last."""
    return table[ids].astype(dtype)


def _rows_forward(table, ids, dtype):
    return _rows(table, ids, dtype), (table, ids)


def _rows_back(dtype, kept, slope):
    table, ids = kept
    return jnp.zeros_like(table, jnp.float32).at[ids].add(slope.astype(jnp.float32)).astype(table.dtype), None


_rows.defvjp(_rows_forward, _rows_back)


def _one_by_one(
    params: Params,
    config: ModelConfig,
    x: jax.Array,
    windows: tuple[int | None, ...],
    rotation: Rotation,
    packing: Packing | None,
    *,
    remat: str,
) -> jax.Array:
    """The layers of a tuple, each a part of the program."""
    adapters = apart(params["lora"], config) if "lora" in params else (None,) * config.layers
    for weights, own, window in zip(params["blocks"], adapters, windows, strict=True):

        def one(x: jax.Array, own: Params | None, weights=weights, window=window) -> jax.Array:
            return _layer(x, weights, None, rotation, packing, config=config, window=window, adapters=own)

        x = _again(one, remat)(x, own)
    return x


def _looked_up(
    params: Params,
    layer: Callable[..., jax.Array],
    x: jax.Array,
    scanned: jax.Array | None,
    rotation: Rotation,
    packing: Packing | None,
    *,
    remat: str,
) -> jax.Array:
    """The layers of a tuple in a loop, as if they were stacked. Each turn copies the weights of its layer, in the
    backward pass again: that is little beside what a layer computes, and no second set of all weights."""
    blocks = params["blocks"]

    def one(x: jax.Array, its: tuple[jax.Array, Params | None, jax.Array | None]) -> tuple[jax.Array, None]:
        number, adapters, window = its
        weights = jax.lax.switch(number, [lambda own=own: own for own in blocks])
        return layer(x, weights, window, rotation, packing, adapters=adapters), None

    def worth_keeping(primitive: Any, *_: Any, **__: Any) -> bool:
        return primitive.name not in _OF_WEIGHTS

    numbers, adapters = jnp.arange(len(blocks)), params["lora"] if "lora" in params else None
    again = jax.checkpoint(one, policy=worth_keeping) if remat == "none" else _again(one, remat)
    x, _ = jax.lax.scan(again, x, (numbers, adapters, scanned))
    return x


def _again(layer: Callable, remat: str) -> Callable:
    """A layer of which the backward pass computes again what it does not keep."""
    if remat == "none":
        return layer
    kept = jax.checkpoint_policies.save_only_these_names(PRODUCT) if remat == "dots" else None
    return jax.checkpoint(layer, policy=kept)


# What is done to the weights of a layer before they are multiplied with: to look them up, to make matrices of them in
# the type of the computation. What comes out is not kept for the backward pass, where it would be a second base.
_OF_WEIGHTS = {"cond", "reshape", "convert_element_type", "mul", "broadcast_in_dim"}


def _layer(
    x: jax.Array,
    weights: Params,
    own: jax.Array | None,
    rotation: Rotation,
    packing: Packing | None,
    *,
    config: ModelConfig,
    window: int | None,
    adapters: Params | None = None,
) -> jax.Array:
    """own: the layer's window, where they differ; else `window` is that of all."""

    def attend(q, k, v):
        if packing:
            q, k, v = (packing.spread(y, heads) for y, heads in zip((q, k, v), HEADS, strict=True))
        seen = window if own is None else own
        context = attention.causal(q, k, v, seen, kernel=config.attention, rows="rows")
        context = constrain(context, "rows", None, "heads", None)
        return packing.gather(context, "heads") if packing else context, None

    x, _ = _bind_block(config, weights, x.dtype)(x, rotation, attend, adapters, within=("rows", None))
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
        its = jax.tree.map(lambda weight: weight.astype(jnp.float32), its)  # for a gradient in float32
        _, back = jax.vjp(lambda x, its: layer(x, its, own, rotation, packing), x, its)
        slope, gradient = back(slope)
        return slope, jax.tree.map(lambda sums, own: sums.at[at].add(own), total, gradient)

    slope, total = jax.lax.fori_loop(0, count, one, (slope, total))
    return slope, None, total, None, None, None


_tapped.defvjp(_tapped_forward, _tapped_back)


def _adapters(weights: Params, config: ModelConfig) -> tuple[Params | None, ...]:
    """Those of each layer, as `lora.sampling_adapters` makes them, or None."""
    return weights["lora"] if "lora" in weights else (None,) * config.layers


def prefill(weights: Params, config: ModelConfig, ids: jax.Array, lengths: jax.Array) -> tuple[Prefix, jax.Array]:
    """Run the prompts once. ids int32 [P, T] padded on the right, lengths int32 [P] -> Prefix, and the logits after
    each prompt's last token, float32 [P, W]."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    rotation = rotation_at(positions, config)
    x = constrain(weights["embed"][ids], "prompts", None, None)

    layers = []
    windows = attention.windows(config, ids.shape[1])
    for block, adapters, window in zip(weights["blocks"], _adapters(weights, config), windows, strict=True):

        def attend(q, k, v, window=window):
            heads_first = (constrain(y.swapaxes(1, 2), "prompts", "kv_heads", None, None) for y in (k, v))
            context = attention.causal(q, k, v, window, kernel=config.attention, rows="prompts")
            return context, LayerCache(*heads_first)

        x, kept = _bind_block(config, block, x.dtype)(x, rotation, attend, adapters, within=("prompts", None))
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
    *,
    block: int | None = None,
) -> tuple[jax.Array, Suffix]:
    """Feed each sample one more token of its response and get the logits for the next.

    tokens int32 [P, V]; lengths int32 [P, V], how many tokens of each response the suffix holds, fewer than it has
    places; at int32 [], the place of the ring that the new tokens take in every sample; rotation: at their positions
    [P, V]; block: as in attention.cached. Returns float32 [P, V, W] and the suffix with that place filled.
    """
    lengths = constrain(lengths, "prompts", "votes")  # else, where draws are split further, masks [P, V, S] are moved
    x = constrain(weights["embed"][tokens], "prompts", "votes", None)
    windows = attention.windows(config, prefix.layers[0].k.shape[2] + suffix[0].k.shape[3])
    filled = []
    layers = zip(weights["blocks"], _adapters(weights, config), prefix.layers, suffix, windows, strict=True)
    for layer, adapters, shared, own, window in layers:

        def attend(q, k, v, shared=shared, own=own, window=window):
            own = LayerCache(
                *(
                    jax.lax.dynamic_update_slice_in_dim(cache, new[:, :, :, None], at, axis=3)
                    for cache, new in ((own.k, k), (own.v, v))
                )
            )
            way = dict(block=block, kernel=config.decode_attention)
            return attention.cached(q, shared, prefix.lengths, own, lengths, at, window, **way), own

        x, kept = _bind_block(config, layer, x.dtype)(x, rotation, attend, adapters, within=("prompts", "votes"))
        filled.append(kept)
    x = rms_norm(x, weights["norm"], config.norm_eps)
    # Each part of the vocabulary where its weights are; then whole rows, for which otherwise the weights would move.
    split = constrain(logits(weights, config, x), "prompts", "votes", "vocab")
    return constrain(split, "draw_prompts", "draws", None), tuple(filled)

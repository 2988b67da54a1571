"""What the devices of a sampler compute: the prefill of prompts, and segments of decode steps."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ttrl_jax.model import decoder
from ttrl_jax.model.cache import Prefix, Suffix
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.layers import Rotation, rotation_at
from ttrl_jax.model.sharding import constrain
from ttrl_jax.rollout.sampling import Sampling, pick
from ttrl_jax.rollout.slots import IDLE, Slots

PyTree = Any

SEGMENT = 64  # decode steps, at most, between two looks of the host (progress, interrupts, moves)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drawn:
    """What a segment drew: rows of the first `steps` are filled."""

    steps: jax.Array  # int32 []
    tokens: jax.Array  # int32 [SEGMENT, G, S]
    logps: jax.Array  # float32 [SEGMENT, G, S]
    votes: jax.Array  # int32 [SEGMENT, G, S], the sample that each is of, or IDLE


def _folded(key: jax.Array, data: jax.Array) -> jax.Array:
    """One key, or as many as there are numbers, each with its number folded in."""
    return jnp.vectorize(jax.random.fold_in)(key, data)


def _is_stop(tokens: jax.Array, stop_ids: tuple[int, ...]) -> jax.Array:
    return (tokens[..., None] == jnp.asarray(stop_ids, jnp.int32)).any(-1)


def prefill(
    weights: decoder.Params,
    ids: jax.Array,
    lengths: jax.Array,
    key: jax.Array,
    uids: jax.Array,
    *,
    sampling: Sampling,
    config: ModelConfig,
) -> tuple[Prefix, jax.Array, jax.Array]:
    """Prefill the prompts and draw the first token of every vote [P, V] from its prompt's logits, with log-probs.

    sampling: with a temperature for each vote, float32 [V]."""
    prefix, logits = decoder.prefill(weights, config, ids, lengths)
    votes = jnp.arange(len(sampling.temperature))
    keys = _folded(_folded(_folded(key, uids)[:, None], votes), jnp.int32(0))
    logits = constrain(logits, "prompts", None)

    def draw(vote: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        keys, temperature = vote
        return pick(logits, keys, dataclasses.replace(sampling, temperature=temperature))

    tokens, logps = jax.lax.map(draw, (keys.T, sampling.temperature))  # one vote after the other: never [P, V, W]
    return prefix, *_for_the_host((tokens.T, logps.T))


State = tuple[Suffix, Slots, jax.Array, Drawn, Rotation]


def segment(
    weights: decoder.Params,
    shared: Prefix,
    suffix: Suffix,
    slots: Slots,
    key: jax.Array,
    uids: jax.Array,
    at: jax.Array,
    watch: jax.Array,
    *,
    sampling: Sampling,
    config: ModelConfig,
    stop_ids: tuple[int, ...],
    max_tokens: int,
    block: int | None = None,
) -> tuple[Suffix, Slots, jax.Array, Drawn]:
    """Draw tokens for at most SEGMENT steps, until the cache is full or no more than `watch` slots are busy.

    shared: the prompts of the groups, and uids uint32 [G] their names. at: the place of the cache to write next.
    sampling: with a temperature for each vote, float32 [V]. block: as in attention.cached. Returns the cache, the
    slots, `at`, and what was drawn.
    """
    keys = _folded(key, uids)[:, None]
    size = suffix[0].k.shape[3]

    def more(state: State) -> jax.Array:
        _, slots, _, out, _ = state
        busy = (slots.votes != IDLE).sum()
        return (out.steps < SEGMENT) & (busy > watch) & (slots.lengths.max() < size)

    def step(state: State) -> State:
        suffix, slots, at, out, rotation = state
        logits, suffix = decoder.decode_step(
            weights, config, slots.tokens, shared, suffix, slots.lengths, at, rotation, block=block
        )
        now = dataclasses.replace(sampling, temperature=sampling.temperature[slots.votes])  # of idle slots any
        tokens, logps = pick(logits, _folded(_folded(keys, slots.votes), slots.lengths + 1), now)
        new = (tokens, logps, slots.votes)
        out = Drawn(
            out.steps + 1,
            *(
                jax.lax.dynamic_update_index_in_dim(log, row, out.steps, 0)
                for log, row in zip((out.tokens, out.logps, out.votes), new, strict=True)
            ),
        )
        ended = _is_stop(tokens, stop_ids) | (slots.lengths + 2 >= max_tokens)
        slots = _refill(slots, tokens, ended)
        return suffix, slots, (at + 1) % size, out, rotation_of(slots)

    def rotation_of(slots: Slots) -> Rotation:
        # Handed to the next step, so that it is computed once: within one, XLA computes it in each layer for each head.
        return rotation_at(shared.lengths[:, None] + constrain(slots.lengths, "prompts", "votes"), config)

    shape = (SEGMENT, *slots.votes.shape)
    out = Drawn(jnp.int32(0), jnp.zeros(shape, jnp.int32), jnp.zeros(shape), jnp.zeros(shape, jnp.int32))
    suffix, slots, at, out, _ = jax.lax.while_loop(more, step, (suffix, slots, at, out, rotation_of(slots)))
    return suffix, *_for_the_host((slots, at, out))


def _for_the_host(x: PyTree) -> PyTree:
    """Arrays that the host reads: whole on every device, as a host reads its own devices alone."""
    return jax.tree.map(lambda leaf: constrain(leaf, *(None,) * leaf.ndim), x)


def _refill(slots: Slots, tokens: jax.Array, ended: jax.Array) -> Slots:
    """The slots after `tokens` [G, S] were drawn: where a sample has `ended`, the next one of the group's queue."""
    busy = slots.votes != IDLE
    ended &= busy
    turn = slots.taken[:, None] + jnp.cumsum(ended, 1) - ended
    some = ended & (turn < slots.waiting[:, None])
    turn = jnp.minimum(turn, slots.queue.shape[1] - 1)
    votes, firsts = (jnp.take_along_axis(x, turn, 1) for x in (slots.queue, slots.firsts))
    goes_on = busy & ~ended
    return dataclasses.replace(
        slots,
        votes=jnp.where(some, votes, jnp.where(ended, IDLE, slots.votes)),
        tokens=jnp.where(some, firsts, jnp.where(goes_on, tokens, 0)),
        lengths=jnp.where(goes_on, slots.lengths + 1, 0),
        taken=jnp.minimum(slots.taken + ended.sum(1), slots.waiting),
    )

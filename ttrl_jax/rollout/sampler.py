"""Sample many responses to each prompt: prefill once per prompt, then decode on a fixed set of slots, in segments.

A slot whose sample has ended takes the next one of its prompt within the same segment: its first token was drawn with
all others from the prompt's logits, so there is nothing to compute. Between segments the host collects what was drawn
and moves the samples to fewer slots when few are left (slots.py).

Randomness is keyed by (the caller's key, question, vote, position). The number of slots, their order, the padding and
the devices change nothing but rounding.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ttrl_jax.model import cache, decoder
from ttrl_jax.model.cache import LayerCache, Prefix, Suffix
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.layers import Rotation, rotation_at
from ttrl_jax.model.sharding import constrain
from ttrl_jax.records import Prompts, Rollouts, padded_length
from ttrl_jax.rollout import slots as places
from ttrl_jax.rollout.sampling import Sampling, pick
from ttrl_jax.rollout.slots import IDLE, Layout, Slots
from ttrl_jax.run.compiled import Compiled

PyTree = Any

SEGMENT = 64  # decode steps, at most, between two looks of the host (progress, interrupts, moves)
FIRST_CACHE = 64  # tokens; it grows as the responses do, and shrinks, so that short ones never pay for long ones
WORTH_MOVING = 32  # steps that may be left, at least, when samples are moved to fewer slots: a new shape is compiled


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drawn:
    """What a segment drew: rows of the first `steps` are filled."""

    steps: jax.Array  # int32 []
    tokens: jax.Array  # int32 [SEGMENT, G, S]
    logps: jax.Array  # float32 [SEGMENT, G, S]
    votes: jax.Array  # int32 [SEGMENT, G, S], the sample that each is of, or IDLE


class Sampler:
    """Compiled sampling programs for one model.

    dtype: of the weights' copy and the cache. rows: slots, the most samples decoded at once. max_tokens: limit of a
    response. stop_ids: tokens that end one. prompt_multiple and vote_multiple: the mesh's data and fsdp sizes, of which
    the groups of slots and the slots of a group are multiples. announce: called with a line before and after each
    compile.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: jnp.dtype,
        rows: int,
        max_tokens: int,
        stop_ids: tuple[int, ...],
        prompt_multiple: int,
        vote_multiple: int,
        announce: Callable[[str], None],
    ):
        self.rows, self.max_tokens, self.stop_ids = rows, max_tokens, stop_ids
        self.prompt_multiple, self.vote_multiple = prompt_multiple, vote_multiple
        program = functools.partial(Compiled, announce=announce)
        empty = functools.partial(cache.empty_suffix, config, dtype=dtype)
        segment = functools.partial(_segment, config=config, stop_ids=stop_ids, max_tokens=max_tokens)
        self._prefill = program("prefill", functools.partial(_prefill, config=config), static_argnames=("sampling",))
        self._empty = program("cache", empty, static_argnames=("prompts", "votes", "slots"))
        self._segment = program("decode", segment, static_argnames=("sampling",), donate_argnames=("suffix",))
        self._resize = program("cache size", cache.resize, static_argnames=("slots",))
        self._move = program("move", cache.move)
        self.programs = (self._prefill, self._empty, self._segment, self._resize, self._move)

    def __call__(
        self,
        weights: decoder.Params,
        prompts: Prompts,
        key: jax.Array,
        *,
        votes: int,
        sampling: Sampling,
        progress: Callable[[int], None],
        ended: Callable[[int, int, np.ndarray], None] = lambda prompt, vote, ids: None,
    ) -> Rollouts:
        """Sample `votes` responses to each prompt.

        weights: as `decoder.sampling_weights` makes them. key: of this step; the question's uid, the vote and the
        position are folded in here. progress(tokens drawn so far) is called between segments and may raise to abandon
        the batch. ended(prompt, vote, its tokens int32 [length]) is called once for each response soon after its end,
        while others are being decoded. Returns host arrays [P, V, T]. Raises FloatingPointError, within two segments,
        where logits were not finite.
        """
        count, drawn, parts = len(prompts.lengths), 0, []
        at_once = places.prompts_at_once(prompts=count, votes=votes, rows=self.rows)
        for p in range(0, count, at_once):
            some = _take(prompts, p, at_once)
            batch = _Batch(self, weights, some, key, pad_prompts=at_once, votes=votes, sampling=sampling)
            parts.append(
                batch.run(
                    lambda tokens, before=drawn: progress(before + tokens),
                    lambda prompt, vote, ids, before=p: ended(before + prompt, vote, ids),
                )
            )
            drawn += int(parts[-1].lengths.sum())
        return _concatenate(parts)

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return sum(program.compile_seconds for program in self.programs)


class _Batch:
    """Prompts whose samples are decoded together: what has been drawn, and which slots it is drawn on."""

    def __init__(
        self,
        sampler: Sampler,
        weights: decoder.Params,
        prompts: Prompts,
        key: jax.Array,
        *,
        pad_prompts: int,
        votes: int,
        sampling: Sampling,
    ):
        """Prefill, and draw the first token of every sample."""
        self.sampler, self.weights, self.key, self.sampling = sampler, weights, key, sampling
        self.count = len(prompts.lengths)
        pad_prompts = -(-pad_prompts // sampler.prompt_multiple) * sampler.prompt_multiple
        filled = np.arange(pad_prompts) % self.count  # padding repeats prompts: same shapes, no special case
        length = padded_length(int(prompts.lengths.max()))
        ids = np.zeros((pad_prompts, length), np.int32)
        ids[:, : prompts.ids.shape[1]] = prompts.ids[filled][:, :length]
        lengths, self.uids = prompts.lengths[filled].astype(np.int32), prompts.uids[filled]
        all_votes = np.arange(votes, dtype=np.int32)
        self.prefix, *first = sampler._prefill(weights, ids, lengths, key, self.uids, all_votes, sampling=sampling)
        self.first, first_logps = jax.device_get(first)
        self._require_finite(first_logps, np.arange(pad_prompts)[:, None])
        shape = (self.count, votes, sampler.max_tokens)
        self.tokens, self.logps = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        self.tokens[..., 0], self.logps[..., 0] = self.first[: self.count], first_logps[: self.count]
        self.lengths = np.ones(shape[:2], np.int32)
        self.layouts = places.layouts(
            prompts=pad_prompts,
            votes=votes,
            rows=sampler.rows,
            prompt_multiple=sampler.prompt_multiple,
            vote_multiple=sampler.vote_multiple,
        )
        self.ended_at_once = self._ended(self.tokens[..., 0], self.lengths)  # [P, V], at their first token
        # Votes of each prompt that are in no group's queue.
        self.waiting = [np.flatnonzero(~row).tolist() for row in self.ended_at_once]
        self.waiting += [[] for _ in range(pad_prompts - self.count)]

    def run(self, progress: Callable[[int], None], ended: Callable[[int, int, np.ndarray], None]) -> Rollouts:
        """Decode until every sample has ended. progress and ended: as in Sampler."""
        for prompt, vote in np.argwhere(self.ended_at_once):
            ended(int(prompt), int(vote), self.tokens[prompt, vote, :1])
        layout, drawn, before, slot_steps = self.layouts[0], int(self.lengths.sum()), None, 0
        none = [[] for _ in self.waiting]
        self.slots, _, self.waiting = places.arrange(layout, none, self.waiting, self.first)
        size, self.at = min(FIRST_CACHE, self.sampler.max_tokens), 0
        self.suffix = self.sampler._empty(prompts=layout.groups, votes=layout.slots, slots=size)
        while (self.slots.votes != IDLE).any() or any(self.waiting):
            progress(drawn)
            layout, watch = self._settle(layout)
            self._fit_cache()
            self.suffix, slots, at, out = self.sampler._segment(
                self.weights, self.prefix, self.suffix, self.slots, self.first, self.key, self.uids,
                np.int32(self.at), np.int32(watch), sampling=self.sampling,
            )  # fmt: skip
            if before is not None:
                self._collect(*before, ended)  # while the device is at work
            votes, tokens, lengths, taken, at, out = jax.device_get(
                (slots.votes, slots.tokens, slots.lengths, slots.taken, at, out)
            )
            before = out, self.slots.prompts
            self.slots = dataclasses.replace(self.slots, votes=votes, tokens=tokens, lengths=lengths, taken=taken)
            self.at, steps = int(at), int(out.steps)
            drawn += int((out.votes[:steps] != IDLE).sum())
            slot_steps += steps * layout.size
        if before is not None:
            self._collect(*before, ended)
        last = np.take_along_axis(self.tokens, self.lengths[..., None] - 1, 2)[..., 0]
        return Rollouts(self.tokens, self.lengths, self.logps, ~self._stopped(last), slot_steps)

    def _stopped(self, tokens: np.ndarray) -> np.ndarray:
        return np.isin(tokens, self.sampler.stop_ids)

    def _ended(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Whether the samples of these last tokens and lengths have ended."""
        return self._stopped(tokens) | (lengths >= self.sampler.max_tokens)

    def _settle(self, layout: Layout) -> tuple[Layout, int]:
        """Move the samples where that pays. Returns the layout and how few busy slots are worth another look."""
        slots, prompts = self.slots, len(self.waiting)
        busy = int((slots.votes != IDLE).sum())
        queued = sum(map(len, self.waiting)) + int(np.maximum(slots.waiting - slots.taken, 0).sum())
        new, smaller = layout, [other for other in self.layouts if other.size < layout.size]
        left = self.sampler.max_tokens - (0 if queued else int(slots.lengths[slots.votes != IDLE].min()))
        worth = left > WORTH_MOVING
        eighth = max(1, layout.size // 8)
        if (worth and smaller and busy + queued <= smaller[0].size) or (queued and busy <= layout.size - eighth):
            active = places.running(slots, prompts)
            fitting = [other for other in smaller if worth and other.size >= busy + queued]
            new = min((o for o in fitting if places.fits(o, active)), key=lambda o: o.size, default=layout)
            arranged = places.arrange(new, active, self._all_waiting(), self.first)
            gain = int((arranged[0].votes != IDLE).sum()) - busy
            if new != layout or gain >= eighth or busy == 0:
                self.slots, source, self.waiting = arranged
                self._by_layer(lambda layer: self.sampler._move(layer, source))
                busy += gain
        smaller = [other.size for other in self.layouts if other.size < new.size]
        if queued:
            return new, max(0, busy - max(1, new.size // 8))
        return new, smaller[0] if worth and smaller and busy > smaller[0] else 0

    def _all_waiting(self) -> list[list[int]]:
        queued = places.queued(self.slots, len(self.waiting))
        return [here + there for here, there in zip(queued, self.waiting, strict=True)]

    def _fit_cache(self) -> None:
        """Grow the cache if it is full, shrink it if the next segment fits a smaller one."""
        size, longest = self.suffix[0].k.shape[3], int(self.slots.lengths.max())
        limit = self.sampler.max_tokens
        need = min(_cache_size(longest + 1), limit)
        ample = min(_cache_size(min(longest + SEGMENT, limit)), limit)
        new = need if need > size else min(size, ample)
        if new != size:
            self._by_layer(lambda layer: self.sampler._resize(layer, np.int32(self.at), slots=new))
            self.at = min(size, new) % new

    def _by_layer(self, change: Callable[[LayerCache], LayerCache]) -> None:
        """Change the cache a layer at a time, so that old and new are never there together."""
        old, self.suffix = list(self.suffix), ()
        while old:
            self.suffix += (change(old.pop(0)),)

    def _collect(self, out: Drawn, prompts: np.ndarray, ended: Callable[[int, int, np.ndarray], None]) -> None:
        """Write what a segment drew to its samples, and hand over those that ended."""
        for step in range(int(out.steps)):
            group, slot = np.nonzero(out.votes[step] != IDLE)
            sample = prompts[group], out.votes[step, group, slot]
            at = (*sample, self.lengths[sample])
            self.tokens[at], self.logps[at] = out.tokens[step, group, slot], out.logps[step, group, slot]
            self._require_finite(self.logps[at], sample[0])
            self.lengths[sample] += 1
            done = self._ended(self.tokens[at], self.lengths[sample])
            for prompt, vote in zip(*(axis[done].tolist() for axis in sample), strict=True):
                ended(prompt, vote, self.tokens[prompt, vote, : self.lengths[prompt, vote]])

    def _require_finite(self, logps: np.ndarray, prompts: np.ndarray) -> None:
        broken = np.broadcast_to(prompts, logps.shape)[~np.isfinite(logps)]
        if len(broken):
            which = f"first those of question {self.uids[broken[0]]} (counted from 0)"
            raise FloatingPointError(f"the log-probs of sampled tokens are not finite, {which}")


def _cache_size(tokens: int) -> int:
    return padded_length(max(tokens, FIRST_CACHE))


def _take(prompts: Prompts, start: int, count: int) -> Prompts:
    part = slice(start, start + count)
    return Prompts(prompts.ids[part], prompts.lengths[part], prompts.uids[part])


def _concatenate(parts: list[Rollouts]) -> Rollouts:
    if len(parts) == 1:
        return parts[0]
    return Rollouts(
        tokens=np.concatenate([part.tokens for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        logps=np.concatenate([part.logps for part in parts]),
        truncated=np.concatenate([part.truncated for part in parts]),
        slot_steps=sum(part.slot_steps for part in parts),
    )


def _folded(key: jax.Array, data: jax.Array) -> jax.Array:
    """One key, or as many as there are numbers, each with its number folded in."""
    return jnp.vectorize(jax.random.fold_in)(key, data)


def _is_stop(tokens: jax.Array, stop_ids: tuple[int, ...]) -> jax.Array:
    return (tokens[..., None] == jnp.asarray(stop_ids, jnp.int32)).any(-1)


def _prefill(
    weights: decoder.Params,
    ids: jax.Array,
    lengths: jax.Array,
    key: jax.Array,
    uids: jax.Array,
    votes: jax.Array,
    *,
    sampling: Sampling,
    config: ModelConfig,
) -> tuple[Prefix, jax.Array, jax.Array]:
    """Prefill the prompts and draw the first token of every vote [P, V] from its prompt's logits, with log-probs."""
    prefix = decoder.prefill(weights, config, ids, lengths)
    keys = _folded(_folded(_folded(key, uids)[:, None], votes), jnp.int32(0))
    logits = constrain(prefix.logits, "prompts", None)
    tokens, logps = jax.lax.map(lambda keys: pick(logits, keys, sampling), keys.T)  # never [P, V, W]
    return prefix, *_for_the_host((tokens.T, logps.T))


State = tuple[Suffix, Slots, jax.Array, Drawn, Rotation]


def _segment(
    weights: decoder.Params,
    prefix: Prefix,
    suffix: Suffix,
    slots: Slots,
    first: jax.Array,
    key: jax.Array,
    uids: jax.Array,
    at: jax.Array,
    watch: jax.Array,
    *,
    sampling: Sampling,
    config: ModelConfig,
    stop_ids: tuple[int, ...],
    max_tokens: int,
) -> tuple[Suffix, Slots, jax.Array, Drawn]:
    """Draw tokens for at most SEGMENT steps, until the cache is full or no more than `watch` slots are busy.

    first int32 [P, V]: first tokens of all samples. at: the place of the cache to write next. Returns the cache, the
    slots, `at`, and what was drawn.
    """
    shared = cache.of_groups(prefix, slots.prompts)  # once for a segment
    keys = _folded(key, uids[slots.prompts])[:, None]
    size = suffix[0].k.shape[3]

    def more(state: State) -> jax.Array:
        _, slots, _, out, _ = state
        busy = (slots.votes != IDLE).sum()
        return (out.steps < SEGMENT) & (busy > watch) & (slots.lengths.max() < size)

    def step(state: State) -> State:
        suffix, slots, at, out, rotation = state
        logits, suffix = decoder.decode_step(weights, config, slots.tokens, shared, suffix, slots.lengths, at, rotation)
        tokens, logps = pick(logits, _folded(_folded(keys, slots.votes), slots.lengths + 1), sampling)
        new = (tokens, logps, slots.votes)
        out = Drawn(
            out.steps + 1,
            *(
                jax.lax.dynamic_update_index_in_dim(log, row, out.steps, 0)
                for log, row in zip((out.tokens, out.logps, out.votes), new, strict=True)
            ),
        )
        ended = _is_stop(tokens, stop_ids) | (slots.lengths + 2 >= max_tokens)
        slots = _refill(slots, tokens, ended, first)
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


def _refill(slots: Slots, tokens: jax.Array, ended: jax.Array, first: jax.Array) -> Slots:
    """The slots after `tokens` [G, S] were drawn: where a sample has `ended`, the next one of the group's queue."""
    busy = slots.votes != IDLE
    ended &= busy
    turn = slots.taken[:, None] + jnp.cumsum(ended, 1) - ended
    some = ended & (turn < slots.waiting[:, None])
    votes = jnp.take_along_axis(slots.queue, jnp.minimum(turn, slots.queue.shape[1] - 1), 1)
    goes_on = busy & ~ended
    return dataclasses.replace(
        slots,
        votes=jnp.where(some, votes, jnp.where(ended, IDLE, slots.votes)),
        tokens=jnp.where(some, first[slots.prompts[:, None], votes], jnp.where(goes_on, tokens, 0)),
        lengths=jnp.where(goes_on, slots.lengths + 1, 0),
        taken=jnp.minimum(slots.taken + ended.sum(1), slots.waiting),
    )

"""Sample many responses to each prompt: prefill once per prompt, then decode on a fixed set of slots, in segments.

A slot whose sample has ended takes the next one of its prompt within the same segment: its first token was drawn with
all others from the prompt's logits, so there is nothing to compute. Between segments the host collects what was drawn
and moves the samples to fewer slots when few are left (slots.py).

Randomness is keyed by (the caller's key, question, vote, position). The number of slots, their order, the padding and
the devices change nothing but rounding.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ttrl_jax.model import cache, decoder
from ttrl_jax.model.cache import LayerCache, Prefix
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.records import Prompts, Rollouts
from ttrl_jax.rollout import decoding
from ttrl_jax.rollout import slots as places
from ttrl_jax.rollout.decoding import Drawn
from ttrl_jax.rollout.sampling import Sampling
from ttrl_jax.rollout.shapes import Shapes
from ttrl_jax.rollout.slots import IDLE, Layout
from ttrl_jax.run.compiled import Announce, Compiled

PyTree = Any
Ended = Callable[[int, int, np.ndarray], None]  # (prompt, vote, its tokens int32 [length])
Wanted = Callable[[range], Sequence[int]]  # prompts -> how many votes of each are to be drawn

WORTH_MOVING = 32  # steps that may be left, at least, when samples are moved to fewer slots: a new shape is compiled


class Sampler:
    """Compiled sampling programs for one model.

    dtype: of the weights' copy and the cache. shapes: for which the programs are compiled, and the limits that decide
    them. stop_ids: tokens that end a response. announce: told of each compile.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: jnp.dtype,
        shapes: Shapes,
        stop_ids: tuple[int, ...],
        announce: Announce,
    ):
        self.shapes, self.max_tokens, self.stop_ids = shapes, shapes.max_tokens, stop_ids
        program = functools.partial(Compiled, announce=announce)
        empty = functools.partial(cache.empty_suffix, config, dtype=dtype)
        segment = functools.partial(
            decoding.segment, config=config, stop_ids=stop_ids, max_tokens=shapes.max_tokens, block=shapes.block
        )
        self.config, self.dtype = config, dtype
        self._prefill = program("prefill", functools.partial(decoding.prefill, config=config), words=_prompts)
        self._share = program("prompts", cache.of_groups)
        self._empty = program("cache", empty, static_argnames=("prompts", "votes", "slots"))
        self._segment = program("decode", segment, donate_argnames=("suffix",), words=_rows)
        self._resize = program("cache size", cache.resize, static_argnames=("slots",))
        self._move = program("move", cache.move)
        self.programs = (self._prefill, self._share, self._empty, self._segment, self._resize, self._move)

    def __call__(
        self,
        weights: decoder.Params,
        prompts: Prompts,
        key: jax.Array,
        *,
        votes: int,
        sampling: Sampling,
        greedy: bool = False,
        tokens: bool = True,
        progress: Callable[[int, float], None],
        ended: Ended = lambda prompt, vote, ids: None,
        wanted: Wanted | None = None,
    ) -> Rollouts:
        """Sample `votes` responses to each prompt; greedy: and one more, the last, at temperature 0. tokens: keep
        what was drawn; False: its lengths and mean log-probs alone.

        weights: as `decoder.sampling_weights` makes them. key: of this step; the question's uid, the vote and the
        position are folded in here. progress(tokens drawn so far, share of the responses that have ended) is called
        between segments and may raise to abandon the batch. ended(prompt, vote, its tokens int32 [length]) is called
        once for each response soon after its end, while others are being decoded. Returns host arrays [P, V, T], the
        greedy one counted in V. Raises FloatingPointError, within two segments, where logits were not finite.

        wanted(prompts): how many votes of each of these prompts are to be drawn, the first ones; None: all. It is asked
        between segments, when `ended` has had all that ended. More may be wanted later, as long as some have not ended.
        Less means that the others do not count: they are dropped, and `ended` may have had some of them.
        """
        count, drawn, parts = len(prompts.lengths), 0, []
        sampling = self.settings(sampling, votes=votes, greedy=greedy)
        at_once = self.shapes.prompts_at_once(prompts=count, votes=votes + greedy)
        for p in range(0, count, at_once):
            some = _take(prompts, p, at_once)
            batch = _Batch(self, weights, some, key, at_once=at_once, votes=votes + greedy, sampling=sampling)

            def so_far(number: int, share: float, *, first: int = p, here: int = batch.count, before: int = drawn):
                progress(before + number, (first + share * here) / count)

            asked = None if wanted is None else functools.partial(wanted, range(p, p + batch.count))
            part = batch.run(so_far, lambda prompt, vote, ids, first=p: ended(first + prompt, vote, ids), asked, greedy)
            parts.append(part if tokens else part.without_tokens())
            drawn += int(part.lengths.sum())
        return _concatenate(parts)

    def settings(self, sampling: Sampling, *, votes: int, greedy: bool) -> Sampling:
        """The sampling as the programs take it: with a temperature for each vote that they have room for."""
        temperatures = np.full(self.shapes.votes(votes + greedy), sampling.temperature, np.float32)
        temperatures[votes:] = 0
        return dataclasses.replace(sampling, temperature=temperatures, top_p=np.float32(sampling.top_p))

    def work(
        self, weights: decoder.Params, key: jax.Array, *, sampling: Sampling, prompts: int
    ) -> Iterator[Callable[[], Any]]:
        """Functions that each compile one of the programs that take long, if `shapes` are few. Nothing runs.

        weights: jax.ShapeDtypeStructs. prompts: how many prompts a batch has.
        """
        shapes, length = self.shapes, self.shapes.prompt_tokens(1)
        sampling = self.settings(sampling, votes=1, greedy=False)
        each = shapes.prefill_prompts(prompts=prompts, tokens=length)
        ids, uids = np.zeros((each, length), np.int32), np.zeros(each, np.uint32)
        yield lambda: self._prefill.prepare(weights, ids, np.zeros(each, np.int32), key, uids, sampling=sampling)
        first = np.zeros((1, len(sampling.temperature)), np.int32)
        heads = (self.config.kv_heads, length, self.config.head_dim)
        for layout in shapes.layouts(prompts=prompts, votes=1):
            slots, *_ = places.arrange(layout, [[]], [[]], first, room=first.shape[1])
            one = LayerCache(*(jax.ShapeDtypeStruct((each, *heads), self.dtype),) * 2)
            shared = Prefix((self._share.outputs([one], slots.prompts),) * self.config.layers, slots.prompts)
            for size in shapes.sizes(layout):
                suffix = self._empty.outputs(prompts=layout.groups, votes=layout.slots, slots=size)
                yield functools.partial(
                    self._segment.prepare, weights, shared, suffix, slots, key, uids[slots.prompts], np.int32(0),
                    np.int32(0), sampling=sampling,
                )  # fmt: skip

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return sum(program.compile_seconds for program in self.programs)


class _Batch:
    """Prompts whose samples are decoded together, with what has been drawn so far and the slots it is drawn on."""

    def __init__(
        self,
        sampler: Sampler,
        weights: decoder.Params,
        prompts: Prompts,
        key: jax.Array,
        *,
        at_once: int,
        votes: int,
        sampling: Sampling,
    ):
        """Prefill, and draw the first token of every sample. at_once: prompts of a batch, of which the last has fewer;
        sampling: with a temperature for each vote, float32 [room], the same for all prompts."""
        self.sampler, self.weights, self.key, self.sampling = sampler, weights, key, sampling
        shapes, self.count, self.room = sampler.shapes, len(prompts.lengths), len(sampling.temperature)
        self.at_once, self.asked = at_once, None  # of each prompt how many votes are wanted now; None: all
        length = shapes.prompt_tokens(int(prompts.lengths.max()))
        each = shapes.prefill_prompts(prompts=at_once, tokens=length)
        filled = np.arange(-(-self.count // each) * each) % self.count  # padding repeats prompts: no special case
        ids = np.zeros((len(filled), length), np.int32)
        ids[:, : prompts.ids.shape[1]] = prompts.ids[filled][:, :length]
        self.prompt_lengths, self.uids = prompts.lengths[filled].astype(np.int32), prompts.uids[filled]
        self.parts, first = [], []
        for at in range(0, len(filled), each):
            part = slice(at, at + each)
            prefix, *drawn = sampler._prefill(
                weights, ids[part], self.prompt_lengths[part], key, self.uids[part], sampling=sampling
            )
            self.parts.append(prefix.layers)
            first.append(jax.device_get(drawn))
        self.first, first_logps = (np.concatenate(each)[: self.count, :votes] for each in zip(*first, strict=True))
        self._require_finite(first_logps, np.arange(self.count)[:, None])
        shape = (self.count, votes, sampler.max_tokens)
        self.tokens, self.logps = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        self.tokens[..., 0], self.logps[..., 0] = self.first, first_logps
        self.lengths = np.ones(shape[:2], np.int32)
        self.layouts = shapes.layouts(prompts=at_once, votes=votes)
        self.ended_at_once = self._ended(self.tokens[..., 0], self.lengths)  # [P, V], at their first token
        # Votes of each prompt that are in no group's queue.
        self.waiting = [np.flatnonzero(~row).tolist() for row in self.ended_at_once]

    def run(
        self,
        progress: Callable[[int, float], None],
        ended: Ended,
        wanted: Callable[[], Sequence[int]] | None = None,
        greedy: bool = False,
    ) -> Rollouts:
        """Decode until every sample has ended that is wanted. progress, ended and wanted: as in Sampler, of this batch;
        greedy: whether the last vote is one, which is always wanted."""
        for prompt, vote in np.argwhere(self.ended_at_once):
            ended(int(prompt), int(vote), self.tokens[prompt, vote, :1])
        if wanted is not None:
            self._begin(wanted, greedy)
        layout, drawn, before, slot_steps = self.layouts[0], int(self.lengths.sum()), None, 0
        none = [[] for _ in self.waiting]
        self.slots, _, self.waiting = places.arrange(layout, none, self.waiting, self.first, room=self.room)
        self._share()
        self.at, size = 0, self.sampler.shapes.sizes(layout)[0]
        self.suffix = self.sampler._empty(prompts=layout.groups, votes=layout.slots, slots=size)
        while (self.slots.votes != IDLE).any() or any(self.waiting):
            progress(drawn, 1 - (self._busy() + self._queued()) / int(self._counted().sum()))
            layout, watch = self._settle(layout)
            self._fit_cache(layout)
            self.suffix, slots, at, out = self.sampler._segment(
                self.weights, self.shared, self.suffix, self.slots, self.key, self.uids[self.slots.prompts],
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
            if wanted is not None:
                self._collect(*before, ended)
                before = None
                self._ask(wanted)
        if before is not None:
            self._collect(*before, ended)
        last = np.take_along_axis(self.tokens, self.lengths[..., None] - 1, 2)[..., 0]
        found = Rollouts(self.tokens, self.lengths, self.logps, ~self._stopped(last), slot_steps)
        return found if wanted is None else found.only(self._counted())

    def _begin(self, wanted: Callable[[], Sequence[int]], greedy: bool) -> None:
        """Let only those votes wait that are wanted at first, and plan slots for so many."""
        votes = self.lengths.shape[1] - greedy
        self.free = np.arange(votes + greedy) < votes  # that need not be drawn
        self.waiting = [[vote for vote in held if not self.free[vote]] for held in self.waiting]
        self.asked = np.zeros(self.count, np.int32)
        self._ask(wanted)
        most = int(self.asked.max()) + greedy
        self.layouts = self.sampler.shapes.layouts(prompts=self.at_once, votes=most)

    def _ask(self, wanted: Callable[[], Sequence[int]]) -> None:
        """Let the votes wait that are wanted now, and drop those that are not any more."""
        before, self.asked = self.asked, np.asarray(wanted(), np.int32)
        for prompt in np.flatnonzero(self.asked > before):
            more = range(before[prompt], self.asked[prompt])
            self.waiting[prompt] += [vote for vote in more if not self.ended_at_once[prompt, vote]]
        dropped = (self.asked < before)[:, None] & ~self._counted()
        if dropped.any():
            self.slots, left = places.without(self.slots, dropped)
            held = [[vote for vote in votes if not dropped[p, vote]] for p, votes in enumerate(self.waiting)]
            self.waiting = [here + there for here, there in zip(held, left, strict=True)]

    def _counted(self) -> np.ndarray:
        """Which votes are wanted now, bool [P, V]."""
        if self.asked is None:
            return np.ones(self.lengths.shape, bool)
        return ~self.free | (np.arange(self.lengths.shape[1]) < self.asked[:, None])

    def _stopped(self, tokens: np.ndarray) -> np.ndarray:
        return np.isin(tokens, self.sampler.stop_ids)

    def _ended(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Whether the samples of these last tokens and lengths have ended."""
        return self._stopped(tokens) | (lengths >= self.sampler.max_tokens)

    def _settle(self, layout: Layout) -> tuple[Layout, int]:
        """Move the samples where that pays. Returns the layout and how few busy slots are worth another look."""
        slots, prompts = self.slots, len(self.waiting)
        busy, queued = self._busy(), self._queued()
        new, smaller = layout, [other for other in self.layouts if other.size < layout.size]
        left = self.sampler.max_tokens - (0 if queued else int(slots.lengths[slots.votes != IDLE].min()))
        worth = left > WORTH_MOVING
        eighth = max(1, layout.size // 8)
        # More votes may be wanted when the slots have been moved together, where votes stop.
        larger = [other for other in self.layouts if other.size > layout.size] if self.asked is not None else []
        larger = larger if busy + queued > layout.size else []
        few = worth and smaller and busy + queued <= smaller[0].size
        if few or larger or (queued and busy <= layout.size - eighth):
            active = places.running(slots, prompts)
            fitting = [other for other in smaller if worth and other.size >= busy + queued]
            fitting += [other for other in larger if other.size >= busy + queued] or larger[:1]
            new = min((o for o in fitting if places.fits(o, active)), key=lambda o: o.size, default=layout)
            arranged = places.arrange(new, active, self._all_waiting(), self.first, room=self.room)
            gain = int((arranged[0].votes != IDLE).sum()) - busy
            if new != layout or gain >= eighth or busy == 0:
                self.slots, source, self.waiting = arranged
                self._share()
                self._by_layer(lambda layer: self.sampler._move(layer, source))
                busy += gain
        smaller = [other.size for other in self.layouts if other.size < new.size]
        if queued:
            return new, max(0, busy - max(1, new.size // 8))
        return new, smaller[0] if worth and smaller and busy > smaller[0] else 0

    def _busy(self) -> int:
        """How many samples are being drawn."""
        return int((self.slots.votes != IDLE).sum())

    def _queued(self) -> int:
        """How many samples wait for a slot."""
        waiting = np.maximum(self.slots.waiting - self.slots.taken, 0)
        return sum(map(len, self.waiting)) + int(waiting.sum())

    def _all_waiting(self) -> list[list[int]]:
        queued = places.queued(self.slots, len(self.waiting))
        return [here + there for here, there in zip(queued, self.waiting, strict=True)]

    def _share(self) -> None:
        """Give each group of slots its prompt. A layer at a time, so that there is never more than one copy."""
        self.shared = None
        prompts = self.slots.prompts
        layers = tuple(self.sampler._share(list(layer), prompts) for layer in zip(*self.parts, strict=True))
        self.shared = Prefix(layers, self.prompt_lengths[prompts])

    def _fit_cache(self, layout: Layout) -> None:
        """Grow the cache if it is full, shrink it if the next segment fits a smaller one."""
        sizes, limit = self.sampler.shapes.sizes(layout), self.sampler.max_tokens
        size, longest = self.suffix[0].k.shape[3], int(self.slots.lengths.max())
        need, ample = (next(s for s in sizes if s >= min(longest + more, limit)) for more in (1, decoding.SEGMENT))
        new = need if need > size or size not in sizes else min(size, ample)
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


def _prompts(weights: decoder.Params, ids: np.ndarray, *rest: PyTree, **settings: PyTree) -> str:
    """What a program of prefill is compiled for, in words."""
    return "{} x {} tokens".format(*ids.shape)


def _rows(weights: decoder.Params, prefix: Prefix, suffix: cache.Suffix, *rest: PyTree, **settings: PyTree) -> str:
    """What a program of decode is compiled for, in words."""
    groups, slots, _, size, _ = suffix[0].k.shape
    return f"{groups} x {slots} rows, cache {size}"


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
        means=None if parts[0].means is None else np.concatenate([part.means for part in parts]),
        slot_steps=sum(part.slot_steps for part in parts),
        counted=None if parts[0].counted is None else np.concatenate([part.counted for part in parts]),
        thrown=sum(part.thrown for part in parts),
    )

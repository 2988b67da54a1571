"""Sample many responses to each prompt: prefill once per prompt, fan out to its votes, decode in jitted segments.

Randomness is keyed by (the caller's key, question, vote, position). The number of prompts decoded together, the padding
and the devices change nothing but rounding.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ttrl_jax.model import cache, decoder
from ttrl_jax.model.cache import Prefix, Suffix
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.sharding import constrain
from ttrl_jax.records import Prompts, Rollouts, padded_length
from ttrl_jax.rollout.sampling import Sampling, pick
from ttrl_jax.run.compiled import Compiled

SEGMENT = 64  # decode steps between two looks of the host (progress, interrupts, early end)
FIRST_CACHE = 128  # tokens; the cache doubles from here, so that short responses never pay for long ones


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """Samples in the making. `t` response tokens of each have been drawn; the last of them is not yet in the cache."""

    t: jax.Array  # int32 []
    tokens: jax.Array  # int32 [P, V, T]
    logps: jax.Array  # float32 [P, V, T]
    lengths: jax.Array  # int32 [P, V]
    done: jax.Array  # bool [P, V]
    suffix: Suffix


class Sampler:
    """Compiled sampling programs for one model.

    dtype: of the weights' copy and the cache. rows: the most samples decoded at once (P x V of one batch).
    max_tokens: limit of a response. stop_ids: tokens that end one. prompt_multiple and vote_multiple: the mesh's data
    and fsdp sizes, to which a batch is padded. announce: called with a line before and after each compile.
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
        self.rows, self.max_tokens = rows, max_tokens
        self.prompt_multiple, self.vote_multiple = prompt_multiple, vote_multiple
        prefill = functools.partial(_start, config=config, max_tokens=max_tokens, stop_ids=stop_ids, dtype=dtype)
        segment = functools.partial(_segment, config=config, stop_ids=stop_ids)
        self._prefill = Compiled("prefill", prefill, announce=announce, static_argnames=("votes", "sampling"))
        self._segment = Compiled(
            "decode", segment, announce=announce, static_argnames=("sampling",), donate_argnames=("state",)
        )
        self._grow = Compiled("grow cache", _grow, announce=announce, static_argnames=("slots",))

    def __call__(
        self,
        weights: decoder.Params,
        prompts: Prompts,
        key: jax.Array,
        *,
        votes: int,
        sampling: Sampling,
        progress: Callable[[int], None],
    ) -> Rollouts:
        """Sample `votes` responses to each prompt.

        weights: as `decoder.sampling_weights` makes them. key: of this step; the question's uid, the vote and the
        position are folded in here. progress(tokens drawn so far) is called between segments and
        may raise to abandon the batch. Returns host arrays [P, V, T].
        """
        chunk_votes = min(votes, self.rows)
        chunk_prompts = min(len(prompts.lengths), max(1, self.rows // chunk_votes))
        tokens_before, parts = 0, []
        for p in range(0, len(prompts.lengths), chunk_prompts):
            row = []
            for v in range(0, votes, chunk_votes):
                part = self._chunk(
                    weights,
                    _take(prompts, p, chunk_prompts),
                    key,
                    first_vote=v,
                    votes=min(chunk_votes, votes - v),
                    pad_prompts=chunk_prompts,
                    pad_votes=chunk_votes,
                    sampling=sampling,
                    progress=lambda n, done=tokens_before: progress(n + done),
                )
                tokens_before += int(part.lengths.sum())
                row.append(part)
            parts.append(_concatenate(row, axis=1))
        return _concatenate(parts, axis=0)

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return sum(program.compile_seconds for program in (self._prefill, self._segment, self._grow))

    def _chunk(
        self,
        weights: decoder.Params,
        prompts: Prompts,
        key: jax.Array,
        *,
        first_vote: int,
        votes: int,
        pad_prompts: int,
        pad_votes: int,
        sampling: Sampling,
        progress: Callable[[int], None],
    ) -> Rollouts:
        count = len(prompts.lengths)
        pad_prompts = -(-pad_prompts // self.prompt_multiple) * self.prompt_multiple
        pad_votes = -(-pad_votes // self.vote_multiple) * self.vote_multiple
        filled = np.arange(pad_prompts) % count  # padding repeats prompts: same shapes, no special case
        length = padded_length(int(prompts.lengths.max()))
        ids = np.zeros((pad_prompts, length), np.int32)
        ids[:, : prompts.ids.shape[1]] = prompts.ids[filled][:, :length]
        lengths = prompts.lengths[filled].astype(np.int32)
        keys = _sample_keys(key, prompts.uids[filled], first_vote + np.arange(pad_votes))
        prefix, state = self._prefill(weights, ids, lengths, keys, votes=pad_votes, sampling=sampling)
        slots, drawn = min(FIRST_CACHE, self.max_tokens), 1
        while drawn < self.max_tokens and not bool(state.done.all()):
            progress(int(state.lengths[:count, :votes].sum()))
            if drawn == slots:
                slots = min(2 * slots, self.max_tokens)
                state = self._grow(state, slots=slots)
            end = min(drawn + SEGMENT, slots, self.max_tokens)
            state = self._segment(weights, prefix, state, keys, np.int32(end), sampling=sampling)
            drawn = int(state.t)
        host = jax.device_get((state.tokens, state.lengths, state.logps, ~state.done))
        return Rollouts(*(np.asarray(array)[:count, :votes] for array in host))


def _take(prompts: Prompts, start: int, count: int) -> Prompts:
    part = slice(start, start + count)
    return Prompts(prompts.ids[part], prompts.lengths[part], prompts.uids[part])


def _concatenate(parts: list[Rollouts], *, axis: int) -> Rollouts:
    if len(parts) == 1:
        return parts[0]
    return Rollouts(
        tokens=np.concatenate([part.tokens for part in parts], axis),
        lengths=np.concatenate([part.lengths for part in parts], axis),
        logps=np.concatenate([part.logps for part in parts], axis),
        truncated=np.concatenate([part.truncated for part in parts], axis),
    )


@jax.jit
def _sample_keys(key: jax.Array, uids: jax.Array, votes: jax.Array) -> jax.Array:
    """Keys [P, V], one for each sample: fold the question's uid, then the vote's number."""
    per_prompt = jax.vmap(jax.random.fold_in, (None, 0))(key, uids)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(per_prompt, votes)


def _at(keys: jax.Array, position: jax.Array) -> jax.Array:
    return jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys, position)


def _is_stop(tokens: jax.Array, stop_ids: tuple[int, ...]) -> jax.Array:
    return (tokens[..., None] == jnp.asarray(stop_ids, jnp.int32)[None, None]).any(-1)


def _start(
    weights: decoder.Params,
    ids: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    *,
    votes: int,
    sampling: Sampling,
    config: ModelConfig,
    max_tokens: int,
    stop_ids: tuple[int, ...],
    dtype: Any,
) -> tuple[Prefix, DecodeState]:
    """Prefill the prompts and draw the first token of every vote from its prompt's logits."""
    prefix = decoder.prefill(weights, config, ids, lengths)
    logits = jnp.broadcast_to(prefix.logits[:, None], (ids.shape[0], votes, config.vocab))
    tokens, logps = pick(constrain(logits, "prompts", "votes", None), _at(keys, jnp.int32(0)), sampling)
    shape = (ids.shape[0], votes, max_tokens)
    suffix = cache.empty_suffix(config, prompts=shape[0], votes=votes, slots=min(FIRST_CACHE, max_tokens), dtype=dtype)
    return prefix, DecodeState(
        t=jnp.int32(1),
        tokens=jnp.zeros(shape, jnp.int32).at[..., 0].set(tokens),
        logps=jnp.zeros(shape, jnp.float32).at[..., 0].set(logps),
        lengths=jnp.ones(shape[:2], jnp.int32),
        done=_is_stop(tokens, stop_ids),
        suffix=suffix,
    )


def _segment(
    weights: decoder.Params,
    prefix: Prefix,
    state: DecodeState,
    keys: jax.Array,
    end: jax.Array,
    *,
    sampling: Sampling,
    config: ModelConfig,
    stop_ids: tuple[int, ...],
) -> DecodeState:
    """Draw tokens until each sample has `end` of them or all have stopped."""

    def more(state: DecodeState) -> jax.Array:
        return (state.t < end) & ~state.done.all()

    def step(state: DecodeState) -> DecodeState:
        last = jax.lax.dynamic_index_in_dim(state.tokens, state.t - 1, axis=2, keepdims=False)
        logits, suffix = decoder.decode_step(weights, config, last, prefix, state.suffix, state.t - 1)
        tokens, logps = pick(logits, _at(keys, state.t), sampling)
        tokens, logps = jnp.where(state.done, 0, tokens), jnp.where(state.done, 0, logps)
        return DecodeState(
            t=state.t + 1,
            tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, tokens, state.t, axis=2),
            logps=jax.lax.dynamic_update_index_in_dim(state.logps, logps, state.t, axis=2),
            lengths=state.lengths + ~state.done,
            done=state.done | _is_stop(tokens, stop_ids) & ~state.done,
            suffix=suffix,
        )

    return jax.lax.while_loop(more, step, state)


def _grow(state: DecodeState, *, slots: int) -> DecodeState:
    return DecodeState(
        state.t, state.tokens, state.logps, state.lengths, state.done, cache.grow(state.suffix, slots=slots)
    )

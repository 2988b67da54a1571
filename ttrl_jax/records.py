"""The array nouns that travel between rooms, and the axis letters used everywhere.

P prompts · V votes per prompt · G trained samples (G <= V) · R rows (P * G) · T tokens · S cache slots
D model · N query heads · K kv heads · H head · F ffn · L layers · W vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

VECTOR = 128  # numbers that a TPU works on at once: what long rows should be a multiple of


def padded_length(length: int, longest: int | None = None) -> int:
    """The length that rows of up to `length` tokens are padded to: 16, 24, 32, 48, 64 ... (few shapes to compile).

    longest: the most tokens of any row, if that is known; then none is padded to more than the next multiple of VECTOR.
    """
    size = 16
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size if longest is None else min(size, -(-longest // VECTOR) * VECTOR)


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts, left-aligned, padded on the right (host arrays)."""

    ids: np.ndarray  # int32 [P, T]
    lengths: np.ndarray  # int32 [P], tokens before the padding
    uids: np.ndarray  # uint32 [P], names the question in the random keys: not its place in the batch


@dataclass(frozen=True)
class Rollouts:
    """Sampled responses (host arrays). Entries at and after `lengths` are padding."""

    tokens: np.ndarray  # int32 [P, V, T], the stop token included
    lengths: np.ndarray  # int32 [P, V], tokens of each response, the stop token included
    logps: np.ndarray  # float32 [P, V, T], log-prob of each token under the tempered, unfiltered distribution
    truncated: np.ndarray  # bool [P, V], true where no stop token came before the limit
    slot_steps: int  # slots times steps that were decoded: what lengths - 1 (the first comes before) could add up to
    texts: Sequence[Sequence[str]] = ()  # [P][V], without special tokens; the sampler, which knows no text, gives none
    means: np.ndarray | None = None  # float64 [P, V], `mean_logps` of responses without their tokens
    # bool [P, V], where votes stop: those that count. The others are zeros, and `texts` leaves them out. None: all do.
    counted: np.ndarray | None = None
    thrown: int = 0  # tokens that were decoded, beside the first, of responses that do not count

    def of_votes(self, start: int, stop: int) -> "Rollouts":
        """The rollouts with only those votes of each prompt; slot_steps and thrown stay those of all votes."""
        arrays = (x[:, start:stop] for x in (self.tokens, self.lengths, self.logps, self.truncated))
        means, counted = (None if x is None else x[:, start:stop] for x in (self.means, self.counted))
        ends = [(start, stop)] * len(self.texts)
        if self.counted is not None:
            ends = zip(*(self.counted[:, :at].sum(1).tolist() for at in (start, stop)), strict=True)
        texts = [row[first:last] for row, (first, last) in zip(self.texts, ends, strict=False)]
        return Rollouts(*arrays, self.slot_steps, texts, means, counted, self.thrown)

    def only(self, counted: np.ndarray) -> "Rollouts":
        """The rollouts of which only some votes count, bool [P, V]."""
        arrays = {"truncated": self.truncated & counted, "lengths": self.lengths * counted}
        arrays |= {name: np.where(counted[..., None], vars(self)[name], 0) for name in ("tokens", "logps")}
        thrown = int((self.lengths - 1)[~counted].sum())
        return replace(self, **arrays, counted=counted, thrown=thrown)

    def most_votes(self) -> "Rollouts":
        """The rollouts with as many votes as count to the prompt that has most of them."""
        return self if self.counted is None else self.of_votes(0, int(self.counted.sum(1).max()))

    def without_tokens(self) -> "Rollouts":
        """What an evaluation needs, T = 0: the tokens of its responses, padded, may be gigabytes."""
        return replace(self, tokens=self.tokens[..., :0], logps=self.logps[..., :0], means=self.mean_logps)

    @property
    def mean_logps(self) -> np.ndarray:
        """Mean log-prob of each response's tokens, float64 [P, V]."""
        if self.means is not None:
            return self.means
        real = np.arange(self.logps.shape[2]) < self.lengths[..., None]
        return np.where(real, self.logps, 0).sum(2, dtype=np.float64) / np.maximum(self.lengths, 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainBatch:
    """The trained samples, one row each: prompt and response in one piece, padded on the right."""

    ids: Any  # int32 [..., R, T], prompt then response
    prompt_lengths: Any  # int32 [..., R]
    responses: Any  # int32 [..., R, T'], the response alone, what the log-probs are taken of
    mask: Any  # float32 [..., R, T'], 1 on response tokens, the stop token included
    sampler_logps: Any  # float32 [..., R, T'], as the sampler saw them (metrics only)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
    """A model that is trained."""

    params: Any  # nested dict of arrays, float32 or bfloat16, the masters
    optimizer: Any  # optax state over params


POLICY, CRITIC, PROCESS = "policy", "critic", "process"  # names: what answers, PPO's critic, PRIME's process model


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What training changes and a checkpoint keeps."""

    step: Any  # int32 [], finished training steps
    models: dict[str, Model]  # by name, the policy among them

    @property
    def policy(self) -> Model:
        return self.models[POLICY]

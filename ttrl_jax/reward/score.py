"""Turn ballots and labels into rewards, and choose the samples to train on. Nothing here can see a truth."""

from collections.abc import Sequence

import numpy as np

from ttrl_jax.errors import InputError
from ttrl_jax.reward.vote import Ballot


def score(ballots: Sequence[Ballot], labels: Sequence[int | None]) -> np.ndarray:
    """Return rewards, float32 [P, V]: 1 where a vote is in the class of the label of its question, else 0.

    A label of None gives its question zeros. V is the most votes of a ballot; those that one lacks have reward 0.
    Raises ValueError for a class that its ballot does not have.
    """
    rewards = []
    for ballot, label in zip(ballots, labels, strict=True):
        if label is not None and not 0 <= label < len(ballot.counts):
            raise ValueError(f"label {label} is none of the ballot's {len(ballot.counts)} classes")
        rewards.append([label is not None and c == label for c in ballot.classes])
    return padded(rewards)


def padded(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Return one row for each question, of a number for each of its votes, as float32 [P, V] with zeros at the ends."""
    found = np.zeros((len(rows), max(map(len, rows), default=0)), np.float32)
    for row, numbers in zip(found, rows, strict=True):
        row[: len(numbers)] = numbers
    return found


def vote_share(ballots: Sequence[Ballot]) -> np.ndarray:
    """Return rewards, float32 [P, V]: the share of all V votes that are in a vote's class; 0 without an answer.

    The reward of EMPO (arXiv 2504.05812): the empirical probability of an answer's meaning. There is no
    label in it. Where votes stop, they are all votes that count.
    """
    return padded([[0.0 if c is None else b.counts[c] / len(b.classes) for c in b.classes] for b in ballots])


def answered(ballots: Sequence[Ballot]) -> np.ndarray:
    """Return rewards, float32 [P, V]: 1 for a vote that has an answer, whatever it is; a control without a label."""
    return padded([[float(c is not None) for c in b.classes] for b in ballots])


def with_format(rewards: np.ndarray, formed: np.ndarray, *, weight: float) -> np.ndarray:
    """Return rewards + weight * formed, float32 [P, V]; formed bool [P, V]: which responses are in the format."""
    return rewards + np.float32(weight) * formed.astype(np.float32)


def with_silence(rewards: np.ndarray, ballots: Sequence[Ballot], *, reward: float) -> np.ndarray:
    """Return the rewards, float32 [P, V], with `reward` in the place of those of votes without an answer."""
    silent = padded([[c is None for c in b.classes] for b in ballots]) > 0
    return np.where(silent, np.float32(reward), rewards)


def select(rewards: np.ndarray, *, samples: int) -> np.ndarray:
    """Return the indices of the samples to train on, int32 [P, G]: the first G of the V, by sample index.

    As `select_top_k_per_prompt` of the reference. Raises InputError if G is less than 1 or more than V.
    """
    prompts, votes = rewards.shape
    if not 1 <= samples <= votes:
        raise InputError(
            f"Expected 1 to {votes} trained samples per prompt, as there are {votes} votes, got {samples}."
        )
    return np.tile(np.arange(samples, dtype=np.int32), (prompts, 1))


def random_classes(ballots: Sequence[Ballot], *, seed: int, step: int, ids: Sequence[int]) -> list[int | None]:
    """Return a label for each ballot, drawn uniformly from its classes (None: it has none), for control runs.

    The draw depends on (seed, step, problem index) alone, not on the order or the number of the ballots.
    """
    labels: list[int | None] = []
    for ballot, i in zip(ballots, ids, strict=True):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step, i)))
        labels.append(int(rng.integers(len(ballot.counts))) if ballot.counts else None)
    return labels

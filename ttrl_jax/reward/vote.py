"""Let the answers to a question vote for its label (arXiv 2504.16084, section 2); measure how they voted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ttrl_jax.reward.equivalence import cluster, find, key
from ttrl_jax.reward.extract import Answer


@dataclass(frozen=True)
class Ballot:
    """The votes on one question. Class ids count from 0 in order of first appearance."""

    classes: tuple[int | None, ...]  # [V] class of each vote; None where there was no answer
    counts: tuple[int, ...]  # votes per class
    answers: tuple[Answer, ...]  # per class, the answer that was seen first
    label: int | None  # the most common class; None if nobody answered
    tied: bool  # another class has as many votes as the label
    undecided: int  # pairs of answers that may be the same, which could not be decided; they count as different


def vote(group: Sequence[Answer | None], *, draw: tuple[int, int, int] | None = None) -> Ballot:
    """Count the V answers to one question; the most common one is the label. None never votes.

    A tie goes to the answer seen first, as in the reference (`Counter.most_common` over the rollouts,
    `verl/verl/trainer/ppo/ttrl_utils.py`). With `draw`, which is (seed, step, problem index), it is drawn among the
    most common ones, as a function of these three alone. Raises ValueError for an empty group.
    """
    if not group:
        raise ValueError("vote() needs at least one vote, got an empty group")
    clusters = cluster(group)
    first: dict[int, Answer] = {}
    counts: list[int] = []
    for answer, i in zip(group, clusters.ids, strict=True):
        if answer is None or i is None:
            continue
        if i not in first:
            first[i] = answer
            counts.append(0)
        counts[i] += 1
    most = [i for i, count in enumerate(counts) if count == max(counts)]
    label = most[0] if most else None
    if draw is not None and len(most) > 1:
        seed, step, index = draw
        # The last number keeps this draw apart from that of `score.random_classes`.
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step, index, 1)))
        label = most[int(rng.integers(len(most)))]
    return Ballot(clusters.ids, tuple(counts), tuple(first.values()), label, len(most) > 1, clusters.undecided)


def label_keys(ballots: Sequence[Ballot]) -> list[str | None]:
    """Return the key of each ballot's label (None: no label), to keep for the question's next visit."""
    return [None if b.label is None else key(b.answers[b.label]) for b in ballots]


def classes_of(ballots: Sequence[Ballot], answers: Sequence[Answer | None]) -> list[int | None]:
    """Return the class of each answer [P] in its question's ballot, None if nobody gave it or there is no answer."""
    pairs = zip(ballots, answers, strict=True)
    return [None if answer is None else find(answer, ballot.answers) for ballot, answer in pairs]


def vote_metrics(
    ballots: Sequence[Ballot],
    rewards: np.ndarray,
    chosen: np.ndarray,
    previous_labels: Mapping[int, str | None],
    *,
    ids: Sequence[int],
) -> dict[str, float]:
    """Measure a step without any truth; every value is a mean over the P questions unless said otherwise.

    Args:
      rewards: float [P, V]; chosen: int [P, G], the samples that are trained on.
      previous_labels: problem index -> `label_keys` value of its last visit; questions never seen are absent.
      ids: [P] problem index of each ballot.

    Returns, with c1 and c2 the two largest counts and the names of the reference where it has one:
      majority_ratio          c1 / V (votes without an answer stay in the denominator)
      runner_up_margin        (c1 - c2) / V
      majority_voting_reward  mean reward of the chosen samples
      rewards/mean, max, min  over all P x G chosen samples
      no_answer_rate          share of the P x V votes without an answer
      no_label_rate           share of questions that nobody answered
      tie_rate, unanimous     share of questions with a tie for the label; where all V votes agree
      distinct_answers        number of classes
      vote_entropy            nats, over the classes (votes without an answer are left out); 0 without any
      undecided               pairs of answers that may be the same, but could not be decided in time
      distinct_labels         different labels among those of the questions / their number; absent without any label
      zero_advantage_groups   share of questions whose chosen rewards are all equal
      flip_rate               share of the questions seen before whose label changed; absent if there are none
    """
    counted = [sorted(b.counts, reverse=True) + [0, 0] for b in ballots]
    votes = np.array([len(b.classes) for b in ballots])
    top, runner_up = np.array([c[0] for c in counted]), np.array([c[1] for c in counted])
    answered = np.array([sum(b.counts) for b in ballots])
    trained = np.take_along_axis(rewards, chosen, axis=1)
    metrics = {
        "majority_ratio": np.mean(top / votes),
        "runner_up_margin": np.mean((top - runner_up) / votes),
        "majority_voting_reward": np.mean(trained, dtype=np.float64),
        "rewards/mean": np.mean(trained, dtype=np.float64),
        "rewards/max": np.max(trained),
        "rewards/min": np.min(trained),
        "no_answer_rate": 1 - answered.sum() / votes.sum(),
        "no_label_rate": np.mean([b.label is None for b in ballots]),
        "tie_rate": np.mean([b.tied for b in ballots]),
        "unanimous": np.mean(top == votes),
        "distinct_answers": np.mean([len(b.counts) for b in ballots]),
        "vote_entropy": np.mean([_entropy(b.counts) for b in ballots]),
        "undecided": np.mean([b.undecided for b in ballots]),
        "zero_advantage_groups": np.mean(np.all(trained == trained[:, :1], axis=1)),
    }
    names = label_keys(ballots)
    labels = [name for name in names if name is not None]
    if labels:
        metrics["distinct_labels"] = len(set(labels)) / len(labels)
    flips = [previous_labels[i] != name for i, name in zip(ids, names, strict=True) if i in previous_labels]
    if flips:
        metrics["flip_rate"] = np.mean(flips)
    return {name: float(value) for name, value in metrics.items()}


def _entropy(counts: Sequence[int]) -> float:
    total = sum(counts)
    return sum(c / total * math.log(total / c) for c in counts)

"""What a ballot means: which answer is the label, and which reward a vote gets. Nothing here can see a truth.

A rule is a pure function of a step's ballots, their labels, the evidence beside each vote and the history of the
questions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ttrl_jax.errors import InputError
from ttrl_jax.reward.equivalence import same
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.history import History
from ttrl_jax.reward.score import answered, random_classes, score, vote_share, with_format
from ttrl_jax.reward.vote import Ballot, classes_of

Labels = list[int | None]  # [P] a class of each ballot; None: no label


@dataclass(frozen=True)
class Evidence:
    """What is known of each vote beside its answer."""

    lengths: np.ndarray  # int32 [P, V], tokens
    mean_logps: np.ndarray  # float64 [P, V], of its tokens
    in_format: np.ndarray | None  # bool [P, V], whether the response is in the format; None without one
    entropies: np.ndarray | None = None  # float32 [P, V], mean of its tokens', in nats, where the rule asks for them


@dataclass(frozen=True)
class Draw:
    """Names the random numbers of a step: they depend on these and a question's number alone."""

    seed: int
    step: int
    ids: Sequence[int]  # [P] numbers of the questions in the data


@dataclass(frozen=True)
class Verdict:
    """What a judge makes of a step's ballots."""

    winners: Labels  # what the votes say: the most common class, ties decided
    labels: Labels  # what makes the rewards: the winners, or the labels of a baseline or a control
    rewards: np.ndarray  # float32 [P, V]
    scale: np.ndarray  # float32 [P], a factor of a question's advantages; 0: nothing is learned, its tokens still count
    bonus: np.ndarray  # float32 [P, V], added to advantages

    def take(self, chosen: np.ndarray) -> "Verdict":
        """The verdict on the chosen votes, int [P, G]: rewards and bonus become [P, G]."""
        rewards, bonus = (np.take_along_axis(x, chosen, axis=1) for x in (self.rewards, self.bonus))
        return replace(self, rewards=rewards, bonus=bonus)


def majority(ballots: Sequence[Ballot], labels: Labels, evidence: Evidence, history: History) -> Verdict:
    """Reward 1 for a vote in the class of the label of its question, else 0 (arXiv 2504.16084)."""
    return _plain(labels, score(ballots, labels))


def share(ballots: Sequence[Ballot], labels: Labels, evidence: Evidence, history: History) -> Verdict:
    """The reward of a vote is the share of all votes that are in its class (arXiv 2504.05812)."""
    return _plain(labels, vote_share(ballots))


def any_answer(ballots: Sequence[Ballot], labels: Labels, evidence: Evidence, history: History) -> Verdict:
    """Reward 1 for any answer: a control, which tells what is learned of the form from what the votes teach."""
    return _plain(labels, answered(ballots))


@dataclass(frozen=True)
class Rule:
    """What a vote earns."""

    decide: Callable[[Sequence[Ballot], Labels, Evidence, History], Verdict]
    asks_entropies: bool = False  # of the evidence: another forward pass over all votes


RULES = {"majority": Rule(majority), "vote_share": Rule(share), "answered": Rule(any_answer)}
LABELS, TIES = ("majority", "offline", "random"), ("first", "random")


@dataclass(frozen=True)
class Judge:
    """(ballots, evidence, history, draw) -> verdict."""

    rule: str = "majority"  # of RULES: what a vote earns
    label: str = "majority"  # of LABELS: the winner's | offline's | drawn from the answers given, a control
    ties: str = "first"  # of TIES: the class seen first wins, or one that is drawn
    format_weight: float = 0.0  # added to the reward of a response that is in the format
    offline: Mapping[int, Answer | None] = field(default_factory=dict)  # question -> label, for label="offline"
    same: Callable[[Answer, Answer], bool] = same  # of two answers

    def __post_init__(self) -> None:
        for name, known in (("rule", tuple(RULES)), ("label", LABELS), ("ties", TIES)):
            if (given := vars(self)[name]) not in known:
                raise InputError(f"a judge's {name} must be one of {', '.join(known)}, got {given!r}")

    @property
    def asks_entropies(self) -> bool:
        """Whether the evidence must have entropies."""
        return RULES[self.rule].asks_entropies

    def __call__(
        self,
        ballots: Sequence[Ballot],
        evidence: Evidence,
        history: History,
        draw: Draw,
        *,
        labels: Labels | None = None,
    ) -> Verdict:
        """The verdict on a step's ballots; labels: from elsewhere, in place of the judge's own."""
        won = winners(ballots, draw, ties=self.ties)
        labels = self._labels(ballots, won, draw) if labels is None else labels
        verdict = replace(RULES[self.rule].decide(ballots, labels, evidence, history), winners=won)
        if evidence.in_format is None:
            return verdict
        return replace(verdict, rewards=with_format(verdict.rewards, evidence.in_format, weight=self.format_weight))

    def _labels(self, ballots: Sequence[Ballot], won: Labels, draw: Draw) -> Labels:
        if self.label == "offline":
            return classes_of(ballots, [self.offline[i] for i in draw.ids], same=self.same)
        if self.label == "random":
            return random_classes(ballots, seed=draw.seed, step=draw.step, ids=draw.ids)
        return won


def winners(ballots: Sequence[Ballot], draw: Draw, *, ties: str) -> Labels:
    """The most common class of each ballot, None if no response has an answer.

    A tie goes to the answer seen first (ties="first"), as in the reference (`Counter.most_common` over the rollouts,
    `verl/verl/trainer/ppo/ttrl_utils.py`), or is drawn among the most common ones ("random").
    """
    if ties == "first":
        return [ballot.label for ballot in ballots]
    found: Labels = []
    for ballot, i in zip(ballots, draw.ids, strict=True):
        # The last number keeps this draw apart from that of `score.random_classes`.
        rng = np.random.default_rng(np.random.SeedSequence(draw.seed, spawn_key=(draw.step, int(i), 1)))
        found.append(ballot.leaders[int(rng.integers(len(ballot.leaders)))] if ballot.tied else ballot.label)
    return found


def _plain(labels: Labels, rewards: np.ndarray) -> Verdict:
    return Verdict(labels, labels, rewards, np.ones(len(rewards), np.float32), np.zeros_like(rewards))

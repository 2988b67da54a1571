"""What a ballot means: which answer is the label, and which reward a vote gets. Nothing here can see a truth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ttrl_jax.errors import InputError
from ttrl_jax.reward import rules
from ttrl_jax.reward.equivalence import same
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.guard import guard
from ttrl_jax.reward.history import History
from ttrl_jax.reward.score import random_classes, with_format, with_silence
from ttrl_jax.reward.verdict import Case, Draw, Evidence, Labels, Settings, Verdict
from ttrl_jax.reward.vote import Ballot, classes_of


@dataclass(frozen=True)
class Rule:
    """What a vote earns."""

    decide: Callable[[Case], Verdict]
    asks_entropies: bool = False  # of the evidence: another forward pass over all votes
    outcomes: bool = True  # whether it gives each question a label, and the rewards 1 and 0 by it: what PRIME learns


RULES = {
    "majority": Rule(rules.majority),
    "vote_share": Rule(rules.share, outcomes=False),
    "answered": Rule(rules.any_answer, outcomes=False),
    "gate": Rule(rules.gate, outcomes=False),
    "negative": Rule(rules.negative, asks_entropies=True, outcomes=False),
    "scrl": Rule(rules.scrl, asks_entropies=True, outcomes=False),
    "guard": Rule(guard),
    "best_of": Rule(rules.best_of),
    "soft": Rule(rules.soft),
}
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
    settings: Settings = Settings()  # the numbers of the rules

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
        case = Case(ballots, labels, evidence, history, draw, self.settings, self.same)
        verdict = replace(RULES[self.rule].decide(case), winners=won)
        rewards = verdict.rewards
        if self.settings.no_answer_reward:
            rewards = with_silence(rewards, ballots, reward=self.settings.no_answer_reward)
        if evidence.in_format is not None:
            rewards = with_format(rewards, evidence.in_format, weight=self.format_weight)
        return replace(verdict, rewards=rewards)

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

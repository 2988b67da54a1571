"""What a judge is given of a step, and what it makes of it. Nothing here can see a truth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ttrl_jax.reward.equivalence import same
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.history import History
from ttrl_jax.reward.vote import Ballot

Labels = list[int | None]  # [P] a class of each ballot; None: no label


@dataclass(frozen=True)
class Evidence:
    """What is known of each vote beside its answer. V is the most votes of a ballot; those that one lacks are zeros."""

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
class Settings:
    """The numbers of the rules: the keys of `judge` in configs/default.py, but for the rule itself."""

    gate_share: float = 0.5
    gate_margin: float = 0.15
    negative_share: float = 0.15
    no_answer_reward: float = 0.0
    soft_slope: float = 1.0
    soft_offset: float = 0.0


@dataclass(frozen=True)
class Case:
    """What a rule decides on: a step's votes, and all that is known of them."""

    ballots: Sequence[Ballot]  # [P]
    labels: Labels  # the winners, or the labels of a baseline or a control
    evidence: Evidence
    history: History  # of the steps before
    draw: Draw
    settings: Settings = Settings()
    same: Callable[[Answer, Answer], bool] = same  # of two answers


@dataclass(frozen=True)
class Verdict:
    """What a judge makes of a step's ballots."""

    winners: Labels  # what the votes say: the most common class, ties decided
    labels: (
        Labels  # what makes the rewards: the winners, what a rule takes instead, or those of a baseline or a control
    )
    rewards: np.ndarray  # float32 [P, V]
    scale: np.ndarray  # float32 [P], a factor of a question's advantages; 0: nothing is learned, its tokens still count
    bonus: np.ndarray  # float32 [P, V], added to advantages, in units of their mean absolute value for the question
    selective: bool = False  # whether the rule leaves some questions without a label, though they have a winner
    found: Mapping[str, float] = field(default_factory=dict)  # what the rule has to say of the step

    def take(self, chosen: np.ndarray) -> "Verdict":
        """The verdict on the chosen votes, int [P, G]: rewards and bonus become [P, G]."""
        rewards, bonus = (np.take_along_axis(x, chosen, axis=1) for x in (self.rewards, self.bonus))
        return replace(self, rewards=rewards, bonus=bonus)


def plain(labels: Labels, rewards: np.ndarray) -> Verdict:
    """A verdict that is nothing but rewards, float32 [P, V]."""
    return Verdict(labels, labels, rewards, np.ones(len(rewards), np.float32), np.zeros_like(rewards))

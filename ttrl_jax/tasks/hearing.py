"""Responses read as they end, while others are being drawn: their texts, and whether a question needs more votes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ttrl_jax.data.problems import Problem
from ttrl_jax.records import Rollouts
from ttrl_jax.reward.stopping import Poll
from ttrl_jax.tasks.task import Task


@dataclass(frozen=True)
class Stop:
    """When the votes on questions of a task stop (reward/stopping.py)."""

    task: Task
    questions: Mapping[int, str]  # number in the data -> question
    error: float  # the chance that a leader is certified which is not the most common answer
    least: int  # votes on each question at least


def stop_of(task: Task, problems: Sequence[Problem], *, error: float, least: int) -> Stop | None:
    """When the votes on these questions stop; None for an error of 0: never."""
    if error == 0:
        return None
    return Stop(task, {problem.index: problem.question for problem in problems}, error, least)


class Hearing:
    """What a batch of prompts is answered."""

    def __init__(
        self, decode: Callable[[np.ndarray], str], uids: Sequence[int], *, votes: int, greedy: bool, stop: Stop | None
    ) -> None:
        """decode: token ids -> text. uids: the questions' numbers in the data. votes: the most that each question may
        have; greedy: and one more response, which is no vote."""
        self._decode, self._votes = decode, votes
        self._texts = [[""] * (votes + greedy) for _ in uids]
        self._polls, self._readers = [], []
        if stop is not None:
            ends = dict(votes=votes, least=stop.least, error=stop.error, surely=stop.task.surely)
            self._polls = [Poll(**ends) for _ in uids]
            self._readers = [stop.task.reader(stop.questions[uid]) for uid in uids]

    def ended(self, prompt: int, vote: int, ids: np.ndarray) -> None:
        """Take a response, int32 [length]."""
        said = self._texts[prompt][vote] = self._decode(ids)
        if self._polls and vote < self._votes:
            self._polls[prompt].end(vote, self._readers[prompt](said))

    def wanted(self, prompts: range) -> list[int]:
        """How many votes of these prompts are wanted now, where votes stop."""
        return [self._polls[prompt].wanted() for prompt in prompts]

    def with_texts(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts of these prompts with the texts of those that count."""
        texts = self._texts
        if rollouts.counted is not None:
            each = zip(texts, rollouts.counted, strict=True)
            texts = [[said for said, counts in zip(*row, strict=True) if counts] for row in each]
        return dataclasses.replace(rollouts, texts=texts)

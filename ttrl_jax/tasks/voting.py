"""From the texts of responses to votes and, in one plain call, to rewards."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.history import History
from ttrl_jax.reward.judge import Draw, Evidence, Judge, Settings
from ttrl_jax.reward.score import padded
from ttrl_jax.reward.vote import Ballot, vote
from ttrl_jax.run import distributed
from ttrl_jax.tasks.task import Task


def cast_votes(task: Task, texts: Sequence[Sequence[str]], *, questions: Sequence[str] | None = None) -> list[Ballot]:
    """The ballots [P] on the answers in responses [P][V]. If there are several processes, each reads a share of them.

    questions: [P]. A task may need the question to read an answer (`Task.reader`), such as the letters that it offers.
    """
    asked = [None] * len(texts) if questions is None else questions

    def cast(item: tuple[str | None, Sequence[str]]) -> Ballot:
        question, group = item
        read = task.reader(question)
        return vote([read(text) for text in group], classes=task.classes)

    return distributed.each(cast, list(zip(asked, texts, strict=True)))


def judge_of(config: ConfigDict, task: Task, *, offline: Mapping[int, Answer | None] | None = None) -> Judge:
    """The judge that a config asks for. There is none for the oracle: with reward.label="truth" it is the judge of the
    majority.

    offline: question -> label, for reward.label="offline".
    """
    reward, keys = config.reward, dict(config.judge)
    return Judge(
        rule=keys.pop("rule"),
        label="majority" if reward.label == "truth" else reward.label,
        ties=reward.ties,
        format_weight=reward.format_weight,
        offline=offline or {},
        same=task.same,
        settings=Settings(**keys),
    )


def in_format(texts: Sequence[Sequence[str]], test: Callable[[str], bool] | None) -> np.ndarray | None:
    """Which of the responses pass the test of a format, bool [P, V]; None where there is no format. V is the most of a
    question; none that others lack passes."""
    return None if test is None else padded([[test(text) for text in group] for group in texts]) > 0


def majority_voting_reward(task: Task, texts: Sequence[str], *, question: str | None = None) -> list[float]:
    """The rewards of the responses to one question: 1 for those that agree with the most common answer, else 0.

    The reference's function of this name (`verl/verl/utils/reward_score/ttrl_math`), but that a response without an
    answer never votes, never wins and earns nothing, and that the votes and the rewards go by one notion of sameness.
    question: by which the task may read them, as in `cast_votes`. Raises ValueError without any response.
    """
    read = task.reader(question)
    ballot = vote([read(text) for text in texts], classes=task.classes)
    nothing = np.zeros((1, len(texts)))
    verdict = Judge(same=task.same)([ballot], Evidence(nothing, nothing, None), History(), Draw(0, 0, [0]))
    return verdict.rewards[0].tolist()

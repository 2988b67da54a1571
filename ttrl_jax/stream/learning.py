"""Learn while answering: a training step on each batch of a stream, and on earlier questions that are asked again."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttrl_jax.algorithms import credit
from ttrl_jax.data.problems import Problem
from ttrl_jax.errors import InputError
from ttrl_jax.learn.batch import train_batch
from ttrl_jax.measure.evidence import evidence_of
from ttrl_jax.measure.step import Seen
from ttrl_jax.reward.history import History
from ttrl_jax.reward.judge import Draw, Judge
from ttrl_jax.reward.score import select
from ttrl_jax.session import Session, update
from ttrl_jax.stream.votes import Voted


@dataclass(frozen=True)
class Memory:
    """What a stream remembers of what it has learned from. It does not grow with the stream."""

    taken: int = 0  # places of the stream that have been taken
    window: tuple[Problem, ...] = ()  # the newest questions
    history: History = History()  # their newest visits

    def meta(self) -> dict[str, Any]:
        """The memory without its history as a JSON object, for a checkpoint."""
        return {"taken": self.taken, "window": [[each.index, each.id, each.question] for each in self.window]}

    @classmethod
    def of(cls, saved: Mapping[str, Any], history: History) -> "Memory":
        """The inverse of `meta`."""
        return cls(saved["taken"], tuple(Problem(*each, None) for each in saved["window"]), history)


def replayed(memory: Memory, *, seed: int, step: int, count: int) -> list[Problem]:
    """`count` questions of the window, or as many as it has, drawn by (seed, step)."""
    # The last number keeps this draw apart from those of judge.py, which name a question in the second.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step, 0, 2)))
    drawn = rng.permutation(len(memory.window))[:count]
    return [memory.window[i] for i in sorted(drawn.tolist())]


def remember(memory: Memory, taken: int, new: Sequence[Problem], *, window: int) -> Memory:
    """The memory after a batch of `taken` places, whose questions were `new`."""
    newest = (*memory.window, *new)[-window:] if window else ()
    return dataclasses.replace(memory, taken=memory.taken + taken, window=newest)


def learn(
    session: Session, voted: Voted, memory: Memory, judge: Judge
) -> tuple[Session, Memory, Seen, dict[str, dict[str, float]]]:
    """One training step on what has been voted on, replayed questions among it: judge, select, credit, update, as
    `train` does it. Returns the session, the memory with the visits, what the step was about, and the metrics of credit
    and update by group. The arrays of `session` are used up."""
    config, ids = session.config, [problem.index for problem in voted.problems]
    evidence = evidence_of(session, voted.prompts, voted.rollouts, judge)
    verdict = judge(voted.ballots, evidence, memory.history, Draw(config.seed, session.step, ids))
    chosen = select(verdict.rewards, samples=config.train.samples)
    rows = train_batch(voted.prompts, voted.rollouts, chosen)
    made = {"step": session.step, "ids": ids, "ballots": voted.ballots, "winners": verdict.winners}
    visits = memory.history.visits_of(**made, lengths=voted.rollouts.lengths, same=judge.same)
    session, advantages, metrics = credit(session, rows, verdict.take(chosen))
    session, learned = update(session, rows, {"advantages": advantages})
    newest = memory.history.add(visits).visits[-max(1, config.solve.window) :]
    asked = voted.problems, voted.prompts, voted.rollouts, voted.ballots
    seen = Seen(*asked, evidence, verdict, chosen, visits)
    return session, dataclasses.replace(memory, history=History(newest)), seen, metrics | {"update": learned}


def require_learnable(config: Any) -> None:
    """Raise InputError for settings with which nothing can be learned from a stream, or nothing kept of it."""
    require_own_labels(config)
    if config.checkpoint.weights_only:
        raise InputError("checkpoint.weights_only=True keeps nothing that a stream could go on from; leave it out")


def require_own_labels(config: Any) -> None:
    """Raise InputError for labels that need the whole data, or its truths, before the first step."""
    if config.reward.label not in ("majority", "random"):
        raise InputError(
            f"reward.label={config.reward.label!r} needs all questions beforehand, and a stream has none; leave it at "
            "'majority'"
        )

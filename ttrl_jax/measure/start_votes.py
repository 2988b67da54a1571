"""The votes of the start model on all questions, cast once: labels that are never renewed, and questions that are
easy."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ttrl_jax.data.problems import Problem, Problems, truths
from ttrl_jax.errors import InputError
from ttrl_jax.measure.generations import generations
from ttrl_jax.programs import start_model_votes
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.judge import Draw, winners
from ttrl_jax.run import distributed
from ttrl_jax.run.metrics import write_jsonl
from ttrl_jax.session import Session, encode, render, sample, step_key
from ttrl_jax.tasks.hearing import stop_of
from ttrl_jax.tasks.voting import cast_votes

LABELS = "labels.jsonl"
_NO_STEP = 2**31 - 1  # whose keys no training step has: those of the votes of the start model

Rows = Sequence[Mapping[str, Any]]  # of `generations`


def start_votes(
    session: Session, workdir: Path, *, progress: Callable[[str], Callable[[int, float], None]]
) -> list[Mapping[str, Any]]:
    """The votes of the start model on each question, in their order in the data, for reward.label="offline" and
    data.order="vote_share"; else none.

    They are sampled once, as a training step samples, and kept in labels.jsonl with the generations. progress: gets
    what is sampled, in words, and makes what `sample` calls. Raises InputError if a run that goes on has lost them: the
    start model is gone by then.
    """
    config, items, path = session.config, session.problems.items, workdir / LABELS
    if not start_model_votes(config):
        return []
    if not distributed.first(path.is_file()):
        if session.step:
            raise InputError(f"{path} is missing, without which the run cannot go on; put it back or begin a new run")
        prompts = encode(session, items)
        stop = stop_of(session.task, items, error=config.rollout.stop_votes, least=config.train.samples)
        way = {"votes": config.rollout.votes, "sampling": session.sampling, "stop": stop}
        show = progress("voting on all questions")
        rollouts = sample(session, prompts, step_key(session, _NO_STEP), **way, progress=show)
        ballots = cast_votes(session.task, rollouts.texts, questions=[problem.question for problem in items])
        won = winners(ballots, Draw(config.seed, _NO_STEP, [p.index for p in items]), ties=config.reward.ties)
        made = {"labels": won, "winners": won, "rewards": None, "truths": truths(items), "same": session.task.same}
        rendered = render(session, items)
        distributed.alone(lambda: write_jsonl(path, generations(items, rendered, rollouts, ballots, **made)))
    read = distributed.gather(lambda: path.read_text(encoding="utf-8") if distributed.leader() else "")
    voted = [json.loads(line) for line in read[0].splitlines()]
    if [row["id"] for row in voted] != [problem.id for problem in items]:
        raise InputError(f"{path} has not the labels of these questions; put it back, or begin a new run")
    return voted


def offline_labels(voted: Rows, items: Sequence[Problem]) -> dict[int, Answer | None]:
    """The label of each question, by its number, that the votes of `start_votes` give, and keep giving."""
    labels = [None if row["label"] is None else Answer(row["label"]) for row in voted]
    return {problem.index: label for problem, label in zip(items[: len(labels)], labels, strict=True)}


def easy_first(problems: Problems, voted: Rows) -> Problems:
    """The problems as they are visited: with data.order="vote_share" by the share of the votes of `start_votes` that
    the winner has, the highest first, and else as they were."""
    if problems.order != "vote_share":
        return problems
    return problems.by_share([max(row["counts"], default=0) / len(row["samples"]) for row in voted])

"""A batch of a stream: which of its questions can be asked, how the model votes on them, and what is answered."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ttrl_jax.data.problems import Problem
from ttrl_jax.data.stream import Asked
from ttrl_jax.errors import InputError
from ttrl_jax.measure.evaluation import task_keys
from ttrl_jax.records import Prompts, Rollouts
from ttrl_jax.reward.judge import Draw, Labels, winners
from ttrl_jax.reward.vote import Ballot
from ttrl_jax.session import Session, encode, sample
from ttrl_jax.tasks.hearing import stop_of
from ttrl_jax.tasks.voting import cast_votes

Row = dict[str, Any]


@dataclass(frozen=True)
class Voted:
    """Questions that the model has voted on."""

    problems: Sequence[Problem]  # P
    prompts: Prompts
    rollouts: Rollouts
    ballots: Sequence[Ballot]  # [P]
    winners: Labels  # [P]
    certified: Sequence[float | None]  # [P], the error at which the votes on a question stopped; None: all were drawn


def askable(session: Session, batch: Sequence[Asked]) -> tuple[list[Problem], dict[int, str]]:
    """The questions of a batch that can be asked; and by their numbers, why the others cannot."""
    problems, errors = [], {}
    for asked in batch:
        if asked.question is None:
            errors[asked.number] = str(asked.error)
            continue
        problem = Problem(asked.number, str(asked.id), asked.question, None)
        try:
            encode(session, [problem])
        except InputError as error:
            errors[asked.number] = str(error)[:500]
        else:
            problems.append(problem)
    return problems, errors


def vote_key(session: Session) -> jax.Array:
    """The key of the votes of a model as it is: that with which `evaluate` asks a config's own questions."""
    return task_keys(session)[0]


def poll(
    session: Session,
    problems: Sequence[Problem],
    key: jax.Array,
    *,
    step: int = 0,
    tokens: bool = False,
    progress: Callable[[int, float], None] = lambda tokens, share: None,
) -> Voted:
    """Let the model vote on questions. The votes on each depend on the key, the seed, the step and its number, but for
    rounding on nothing else that is asked with it. tokens: keep them, to learn from. progress: as in `sample`."""
    config, prompts = session.config, encode(session, problems)
    stop = stop_of(session.task, problems, error=config.rollout.stop_votes, least=config.train.samples)
    way = {"votes": config.rollout.votes, "sampling": session.sampling, "stop": stop}
    rollouts = sample(session, prompts, key, **way, tokens=tokens, progress=progress)
    ballots = cast_votes(session.task, rollouts.texts, questions=[problem.question for problem in problems])
    draw = Draw(config.seed, step, [problem.index for problem in problems])
    won = winners(ballots, draw, ties=config.reward.ties)
    stopped = [len(ballot.classes) < config.rollout.votes for ballot in ballots]
    certified = [config.rollout.stop_votes if early else None for early in stopped]
    return Voted(problems, prompts, rollouts, ballots, won, certified)


def answers(
    batch: Sequence[Asked], voted: Voted | None, errors: Mapping[int, str], *, seconds: float, more: Row
) -> list[Row]:
    """What is written of a batch, in its order: an answer to each question that was asked, an error in the place of
    each other one. seconds: since the batch was taken. more: what else is said of an answer."""
    found = {} if voted is None else _by_number(voted)
    rows = []
    for asked in batch:
        begin: Row = {"id": asked.id, "number": asked.number}
        begin |= {} if asked.source is None else {"source": asked.source}
        said = {"error": errors[asked.number]} if asked.number in errors else found[asked.number] | more
        end = {} if "error" in said else {"seconds": round(seconds, 3)}
        rows.append(begin | said | end | {"sha256": asked.digest})
    return rows


def _by_number(voted: Voted) -> dict[int, Row]:
    found = {}
    lengths = voted.rollouts.lengths
    each = zip(voted.problems, voted.ballots, voted.winners, voted.certified, lengths, strict=True)
    for problem, ballot, winner, error, tokens in each:
        votes = len(ballot.classes)
        found[problem.index] = {
            "label": None if winner is None else ballot.answers[winner].text,
            "share": 0.0 if winner is None else round(ballot.counts[winner] / votes, 6),
            "votes": votes,
            "certificate": None if error is None else {"error": error},  # of the mode, not of the truth
            "tokens": int(tokens.sum()),
        }
    return found


def differing(made: Sequence[Row], earlier: Sequence[Row], *, where: str) -> int:
    """How many of `earlier` rows, which an earlier process wrote of the same places, have another label than those
    `made` now. Raises InputError if they are of other questions. where: their file."""
    for now, before in zip(made, earlier, strict=False):
        require_same_question(now, before, where=where)
    return sum(now.get("label") != before.get("label") for now, before in zip(made, earlier, strict=False))


def require_same_question(now: Mapping[str, Any], before: Mapping[str, Any], *, where: str) -> None:
    """Raise InputError if a row is no answer to the question that stands in its place."""
    keys = ("number", "id", "sha256")
    if any(now[key] != before.get(key) for key in keys):
        raise InputError(
            f"{where} has in line {now['number'] + 1} an answer to another question than the stream has there (id "
            f"{before.get('id')!r} there, {now['id']!r} now); give the questions that it began with, or another --out"
        )

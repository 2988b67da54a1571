"""Responses and what became of them, and pairs of answers that were not decided, as rows of files."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ttrl_jax.data.problems import Problem
from ttrl_jax.records import Rollouts
from ttrl_jax.reward.audit import truth_classes
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.vote import Ballot
from ttrl_jax.session import Session

_MOST_PAIRS, _LONGEST = 64, 300


def generations(
    problems: Sequence[Problem],
    prompts: Sequence[str],
    rollouts: Rollouts,
    ballots: Sequence[Ballot],
    *,
    labels: Sequence[int | None],
    winners: Sequence[int | None],
    rewards: np.ndarray | None,
    truths: Sequence[str | None] | None,
    same: Callable[[Answer, Answer], bool],
    formed: np.ndarray | None = None,
    spelled: Callable[[int], str] | None = None,
) -> list[dict[str, Any]]:
    """One JSON-ready row for each problem: question, prompt as the model sees it, `label` and `majority` and every
    response with answer, class and reward.

    prompts [P], as text; labels [P], the class that was rewarded; winners [P], the class that the votes say, another
    one for the labels of a baseline, an oracle or a control (None: nobody gave it); same: whether two answers are. Of a
    question with one in `truths`, also the truth and `right`, the class that it is in (None: nobody gave it).

    formed: bool [P, V], the responses that are in the format, or None without one. spelled: token -> its text; with it
    each response has `token_logps`, [text, log-prob] of each token.
    """
    rows, scores = [], rollouts.mean_logps
    right = None if truths is None else truth_classes(ballots, truths, same=same)
    for p, (problem, ballot) in enumerate(zip(problems, ballots, strict=True)):
        samples = [
            {
                "response": text,
                "answer": None if answer is None else answer.text,
                "class": ballot.classes[v],
                "tokens": int(rollouts.lengths[p, v]),
                "truncated": bool(rollouts.truncated[p, v]),
                "mean_logp": float(scores[p, v]),
            }
            | ({} if rewards is None else {"reward": float(rewards[p, v])})
            | ({} if formed is None else {"in_format": bool(formed[p, v])})
            | ({} if spelled is None else {"token_logps": _token_logps(rollouts, p, v, spelled)})
            for v, (text, answer) in enumerate(zip(rollouts.texts[p], ballot.votes, strict=True))
        ]
        label, majority = (None if c is None else ballot.answers[c].text for c in (labels[p], winners[p]))
        rows.append(
            {
                "id": problem.id,
                "question": problem.question,
                "prompt": prompts[p],
                "label": label,
                "majority": majority,
                "counts": list(ballot.counts),
                "samples": samples,
            }
            | ({} if truths is None or truths[p] is None else {"truth": truths[p], "right": right[p]})
        )
    return rows


def spelling(session: Session) -> Callable[[int], str] | None:
    """The text of each token, alone: a part of a letter is "\ufffd". None unless log.token_logps asks for it."""
    if not session.config.log.token_logps:
        return None
    return functools.cache(lambda token: session.inputs.tokenizer.decode([token]))


def _token_logps(rollouts: Rollouts, p: int, v: int, spelled: Callable[[int], str]) -> list[tuple[str, float]]:
    length = rollouts.lengths[p, v]
    tokens, logps = rollouts.tokens[p, v, :length].tolist(), rollouts.logps[p, v, :length].tolist()
    return [(spelled(token), round(logp, 4)) for token, logp in zip(tokens, logps, strict=True)]


def undecided(problems: Sequence[Problem], ballots: Sequence[Ballot], **more: Any) -> list[dict[str, Any]]:
    """One JSON-ready row for each pair of a question's answers that was not decided: `more`, `question`, its number in
    the data, the texts `first` and `second`, and `why` (`symbolic.Undecided`). At most 64 of a question,
    and 300 characters of a text: odd ones may be as long as a response."""
    return [
        more
        | {"question": problem.index, "first": pair.first[:_LONGEST], "second": pair.second[:_LONGEST], "why": pair.why}
        for problem, ballot in zip(problems, ballots, strict=True)
        for pair in ballot.pairs[:_MOST_PAIRS]
    ]

"""Measure a model on problems with known answers: sample k responses to each and count."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ttrl_jax.data.problems import Problem
from ttrl_jax.records import Rollouts
from ttrl_jax.reward.audit import truth_classes
from ttrl_jax.reward.estimates import maj_at_k, pass_at_k
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.vote import Ballot, vote


def evaluate(
    answers: Sequence[Sequence[Answer | None]], truncated: np.ndarray, lengths: np.ndarray, truths: Sequence[str] | None
) -> dict[str, float]:
    """Summarise k samples of each problem.

    answers [P][k]; truncated bool [P, k]; lengths int [P, k] in tokens; truths [P], or None where there are none.
    Always: majority_ratio, truncation_rate, no_answer_rate, response_length. With truths, each a mean over problems:
    avg@k (share of correct samples, the paper's pass@1), std@k (spread of a problem's samples), worst@k (all k
    correct), and for j = 2, 4, 8 ... and k: pass@j (unbiased, arXiv 2107.03374) and maj@j (exact, ties split evenly).
    """
    ballots = [vote(group) for group in answers]
    k = truncated.shape[1]
    result = {
        "majority_ratio": float(np.mean([max(ballot.counts, default=0) / k for ballot in ballots])),
        "truncation_rate": float(truncated.mean()),
        "no_answer_rate": float(np.mean([answer is None for group in answers for answer in group])),
        "response_length": float(lengths.mean()),
    }
    if truths is None:
        return result
    right = truth_classes(ballots, truths)
    judged = list(zip(ballots, right, strict=True))
    shares = np.array([_correct(ballot, c) / k for ballot, c in judged])
    result[f"avg@{k}"] = float(shares.mean())
    result[f"std@{k}"] = float(np.sqrt(shares * (1 - shares)).mean())
    result[f"worst@{k}"] = float((shares == 1).mean())
    for j in [2**i for i in range(1, k.bit_length()) if 2**i < k] + [k]:
        result[f"pass@{j}"] = float(np.mean([pass_at_k(k, _correct(b, c), j) for b, c in judged]))
        result[f"maj@{j}"] = float(np.mean([maj_at_k(b.counts, c, b.classes.count(None), j) for b, c in judged]))
    return result


def _correct(ballot: Ballot, right: int | None) -> int:
    """Samples in the truth's class."""
    return 0 if right is None else ballot.counts[right]


def generations(
    problems: Sequence[Problem],
    texts: Sequence[Sequence[str]],
    answers: Sequence[Sequence[Answer | None]],
    ballots: Sequence[Ballot],
    rollouts: Rollouts,
    rewards: np.ndarray | None,
) -> list[dict[str, Any]]:
    """One JSON-ready row for each problem: its question, label and every response with answer, class and reward."""
    rows = []
    for p, (problem, ballot) in enumerate(zip(problems, ballots, strict=True)):
        samples = [
            {
                "response": text,
                "answer": None if answer is None else answer.text,
                "class": ballot.classes[v],
                "tokens": int(rollouts.lengths[p, v]),
                "truncated": bool(rollouts.truncated[p, v]),
            }
            | ({} if rewards is None else {"reward": float(rewards[p, v])})
            for v, (text, answer) in enumerate(zip(texts[p], answers[p], strict=True))
        ]
        label = None if ballot.label is None else ballot.answers[ballot.label].text
        rows.append(
            {
                "id": problem.id,
                "question": problem.question,
                "label": label,
                "counts": list(ballot.counts),
                "samples": samples,
            }
        )
    return rows


def table(columns: dict[str, dict[str, float]], *, samples: int) -> str:
    """The results side by side as plain text; columns: title -> what `evaluate` returned."""
    names = [
        f"avg@{samples}",
        f"maj@{samples}",
        f"pass@{samples}",
        "majority_ratio",
        "no_answer_rate",
        "truncation_rate",
        "response_length",
    ]
    names = [name for name in names if all(name in result for result in columns.values())]
    width = max(len(name) for name in names)
    lines = [" " * width + "".join(f"  {title:>15}" for title in columns)]
    for name in names:
        lines.append(f"{name:<{width}}" + "".join(f"  {result[name]:>15.3f}" for result in columns.values()))
    return "\n".join(lines)

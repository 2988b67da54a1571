"""Measure a model on questions with known answers: sample k responses to each and count. For train and evaluate."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ttrl_jax.check import measured_samples
from ttrl_jax.data.problems import truths
from ttrl_jax.measure.generations import generations, spelling, undecided
from ttrl_jax.measure.step import drawn_share
from ttrl_jax.programs import sampling_of
from ttrl_jax.records import Rollouts
from ttrl_jax.reward.audit import having, truth_classes
from ttrl_jax.reward.equivalence import same
from ttrl_jax.reward.estimates import best_of_n, maj_at_k, pass_at_k
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.vote import Ballot
from ttrl_jax.session import Session, encode, render, sample
from ttrl_jax.tasks.hearing import stop_of
from ttrl_jax.tasks.scorer import scores_of
from ttrl_jax.tasks.sets import QuestionSet
from ttrl_jax.tasks.voting import cast_votes, in_format


@dataclass(frozen=True)
class Measured:
    """What an evaluation of one set of questions found."""

    numbers: dict[str, float]  # as `evaluate` returns them
    rows: Callable[[], list[dict[str, Any]]]  # makes `generations`, with "greedy" in each row where it was sampled
    undecided: list[dict[str, Any]]  # rows of `generations.undecided`: pairs of answers to one question


def measure(
    session: Session, questions: QuestionSet, key: jax.Array, *, progress: Callable[[int, float], None]
) -> Measured:
    """Sample responses to questions as eval.* of the config says, and measure them.

    Where votes stop, how many there are depends on what they say, and so would the estimates. So these are of the first
    half, which is always drawn. What all votes say is measured beside them: `of_stopped`.

    key: the random key of this set. It is the same at every step, so that two models are compared on the same random
    numbers. progress: as in `sample`. Raises FloatingPointError, which names the set and a question, if logits are not
    finite.
    """
    task, config, known = questions.task, session.config.eval, truths(questions.items)
    scorer = session.inputs.scorer
    prompts, rendered = (make(session, questions.items, task=task) for make in (encode, render))
    measured = measured_samples(config.samples, config.stop_votes)
    way = dict(votes=config.samples, sampling=sampling_of(config), greedy=config.greedy, tokens=False)
    way["stop"] = stop_of(task, questions.items, error=config.stop_votes, least=measured)
    try:
        drawn = sample(session, prompts, key, **way, progress=progress)
    except FloatingPointError as error:
        raise FloatingPointError(f"evaluating {questions.name}: {error}") from error
    asked = [problem.question for problem in questions.items]
    parts = [drawn.of_votes(0, measured)] + [drawn.of_votes(config.samples, config.samples + 1)] * config.greedy
    sets = [(part, cast_votes(task, part.texts, questions=asked)) for part in parts]
    rollouts, ballots = sets[0]

    def rows() -> list[dict[str, Any]]:
        of_sets = []
        for rollouts, ballots in sets:
            won = [ballot.label for ballot in ballots]
            made = {"labels": won, "winners": won, "rewards": None, "truths": known, "same": task.same}
            made |= {"formed": in_format(rollouts.texts, task.in_format), "spelled": spelling(session)}
            of_sets.append(generations(questions.items, rendered, rollouts, ballots, **made))
        if not config.greedy:
            return of_sets[0]
        return [row | {"greedy": other["samples"][0]} for row, other in zip(*of_sets, strict=True)]

    found = evaluate(
        ballots,
        rollouts,
        known,
        extra_k=config.k,
        greedy=sets[1][1] if config.greedy else None,
        formed=in_format(rollouts.texts, task.in_format),
        readings={
            name: cast_votes(dataclasses.replace(task, extract=read, reader_of=None), rollouts.texts)
            for name, read in task.readings.items()
        },
        same=task.same,
        levels=[problem.level for problem in questions.items],
        scores=scores_of(scorer, rendered, rollouts.texts) if scorer and known else None,
    )
    if config.stop_votes:
        stopped = cast_votes(task, drawn.of_votes(0, config.samples).texts, questions=asked)
        found |= of_stopped(stopped, known, votes=config.samples, same=task.same)
    pairs = [row for _, ballots in sets for row in undecided(questions.items, ballots)]
    return Measured(found, rows, pairs)


def of_stopped(
    ballots: Sequence[Ballot],
    truths: Sequence[str | None] | None,
    *,
    votes: int,
    same: Callable[[Answer, Answer], bool] = same,
) -> dict[str, float]:
    """Summarise votes that stop; ballots [P], of at most `votes`; truths [P] as in `evaluate`.

    drawn_share: the votes that count, of those that were allowed. With truths, stopped_maj: the share of questions, of
    those with a truth, whose winner is right; in a tie it is the answer seen first.
    """
    result = {"drawn_share": drawn_share(ballots, votes)}
    if truths is not None:
        places, _ = having(truths)
        known = [ballots[i] for i in places]
        right = truth_classes(known, [truths[i] for i in places], same=same)
        won = [c is not None and ballot.label == c for ballot, c in zip(known, right, strict=True)]
        result["stopped_maj"] = float(np.mean(won))
    return result


def task_keys(session: Session) -> list[jax.Array]:
    """A random key for each set of questions, by its place in eval.tasks; the first is of the config's own data."""
    root = jax.random.key(session.config.seed)
    return [jax.random.fold_in(root, 1 + i) for i in range(len(session.inputs.sets))]  # 0 is training's


def evaluate(
    ballots: Sequence[Ballot],
    rollouts: Rollouts,
    truths: Sequence[str | None] | None,
    *,
    extra_k: Sequence[int],
    greedy: Sequence[Ballot] | None,
    formed: np.ndarray | None,
    readings: Mapping[str, Sequence[Ballot]],
    same: Callable[[Answer, Answer], bool] = same,
    levels: Sequence[int | None] = (),
    scores: np.ndarray | None = None,
) -> dict[str, float]:
    """Summarise k samples of each problem.

    ballots [P], of k votes each, on `rollouts`; truths [P], of which some may be None, or None where there are none;
    greedy [P], ballots of the one answer at temperature 0; formed bool [P, k], the samples that are in the format, or
    None without one; readings: name -> ballots [P] on the same samples, read in another way; same: whether two answers
    are; levels [P], of which some may be None, or none; scores float64 [P, k], of eval.scorer, or None. An answer is
    one that votes: an empty one does not.
    Always: majority_ratio, truncation_rate, no_answer_rate, undecided (pairs of a problem's answers that may be the
    same but were not decided, mean over problems), response_length (tokens), with a format format_rate (share of
    samples in it), and of each reading NAME_valid_rate (share of samples in which it finds an answer). With truths,
    truths (how many problems have one; only where others have none), and, each a mean over those problems: avg@k (share
    of correct samples, the paper's pass@1), std@k (spread of a problem's samples), worst@k (all k correct), greedy
    (share of correct greedy answers), and for j = 2, 4, 8 ..., k and those of `extra_k`: pass@j (unbiased, arXiv
    2107.03374), maj@j (exact, ties split evenly) and best_of@j (exact: of j samples, the one with the highest mean
    log-prob of its tokens is correct), with scores also scorer_best_of@j (the one with the highest score); of each
    reading NAME_avg@k, NAME_pass@j and NAME_maj@j likewise.
    Where there are several levels, means over the questions of each of them, such as level3_avg@k: avg@k, maj@k,
    majority_ratio, no_answer_rate, truncation_rate and response_length.
    """
    k = rollouts.lengths.shape[1]
    levels = levels if len({*levels} - {None}) > 1 else ()
    result = {
        "majority_ratio": float(np.mean([max(ballot.counts, default=0) / k for ballot in ballots])),
        "truncation_rate": float(rollouts.truncated.mean()),
        "no_answer_rate": float(np.mean([c is None for ballot in ballots for c in ballot.classes])),
        "undecided": float(np.mean([ballot.undecided for ballot in ballots])),
        "response_length": float(rollouts.lengths.mean()),
    }
    if formed is not None:
        result["format_rate"] = float(formed.mean())
    for name, read in readings.items():
        result[f"{name}_valid_rate"] = float(np.mean([c is not None for ballot in read for c in ballot.classes]))
    if truths is not None:
        sizes = sorted({*(2**i for i in range(1, k.bit_length())), k, *extra_k})
        more = {"greedy": greedy, "readings": readings, "same": same, "levels": levels, "scores": scores}
        result |= _with_truths(ballots, rollouts, truths, sizes, **more)
    each = {
        "majority_ratio": [max(ballot.counts, default=0) / k for ballot in ballots],
        "no_answer_rate": [ballot.classes.count(None) / k for ballot in ballots],
        "truncation_rate": rollouts.truncated.mean(1),
        "response_length": rollouts.lengths.mean(1),
    }
    return result | _by_level(levels, each)


def _by_level(levels: Sequence[int | None], values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each of `values` [P] over the questions of each level."""
    return {
        f"level{level}_{name}": float(np.mean([x for x, its in zip(each, levels, strict=True) if its == level]))
        for level in sorted({level for level in levels if level is not None})
        for name, each in values.items()
    }


def _with_truths(
    ballots: Sequence[Ballot],
    rollouts: Rollouts,
    truths: Sequence[str | None],
    sizes: Sequence[int],
    *,
    greedy: Sequence[Ballot] | None,
    readings: Mapping[str, Sequence[Ballot]],
    same: Callable[[Answer, Answer], bool],
    levels: Sequence[int | None],
    scores: np.ndarray | None,
) -> dict[str, float]:
    """The metrics of `evaluate` that need truths, of the questions that have one; sizes: each j."""
    places, result = having(truths)

    def of_those(values: Sequence[Any]) -> list[Any]:
        return [values[i] for i in places]

    ballots, truths, k = of_those(ballots), of_those(truths), rollouts.lengths.shape[1]
    right = truth_classes(ballots, truths, same=same)
    result |= _accuracies(ballots, right, sizes)
    correct = np.array([[c is not None and i == c for i in b.classes] for b, c in zip(ballots, right, strict=True)])
    shares = correct.mean(1)
    if levels:
        voted = [maj_at_k(b.counts, c, b.classes.count(None), k) for b, c in zip(ballots, right, strict=True)]
        result |= _by_level(of_those(levels), {f"avg@{k}": shares, f"maj@{k}": voted})
    result[f"std@{k}"] = float(np.sqrt(shares * (1 - shares)).mean())
    result[f"worst@{k}"] = float((shares == 1).mean())
    if greedy is not None:
        found = truth_classes(of_those(greedy), truths, same=same)
        result["greedy"] = float(np.mean([c is not None for c in found]))
    ranked = {"best_of": rollouts.mean_logps} | ({} if scores is None else {"scorer_best_of": scores})
    for name, by in ranked.items():
        for j in sizes:
            best = [best_of_n(*each, j) for each in zip(by[places].tolist(), correct.tolist(), strict=True)]
            result[f"{name}@{j}"] = float(np.mean(best))
    for name, read in readings.items():
        read = of_those(read)
        found = _accuracies(read, truth_classes(read, truths, same=same), sizes)
        result |= {f"{name}_{metric}": value for metric, value in found.items()}
    return result


def _accuracies(ballots: Sequence[Ballot], right: Sequence[int | None], sizes: Sequence[int]) -> dict[str, float]:
    """avg@k, and pass@j and maj@j for each j of `sizes`; right [P]: the class of each ballot that the truth is in."""
    k = len(ballots[0].classes)
    hits = [0 if c is None else ballot.counts[c] for ballot, c in zip(ballots, right, strict=True)]
    result = {f"avg@{k}": float(np.mean(hits) / k)}
    for j in sizes:
        result[f"pass@{j}"] = float(np.mean([pass_at_k(k, n, j) for n in hits]))
        won = [maj_at_k(b.counts, c, b.classes.count(None), j) for b, c in zip(ballots, right, strict=True)]
        result[f"maj@{j}"] = float(np.mean(won))
    return result

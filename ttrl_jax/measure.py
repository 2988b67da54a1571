"""Measure a model on questions with known answers: sample k responses to each and count. For train and evaluate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ttrl_jax import build as builder
from ttrl_jax.data.problems import Problem, truths
from ttrl_jax.model.decoder import Params
from ttrl_jax.records import Rollouts
from ttrl_jax.reward.audit import truth_classes
from ttrl_jax.reward.estimates import best_of_n, maj_at_k, pass_at_k
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.vote import Ballot, vote
from ttrl_jax.run import distributed
from ttrl_jax.source import parameter_count
from ttrl_jax.tasks import Task


@dataclass(frozen=True)
class Measured:
    """What an evaluation of one task found."""

    numbers: dict[str, float]  # as `evaluate` returns them
    rows: list[dict[str, Any]]  # as `generations` returns them, with "greedy" in each where it was sampled


def measure(
    task: Task,
    parts: builder.EvalParts,
    params: Params,
    key: jax.Array,
    *,
    extra_k: Sequence[int],
    greedy: bool,
    progress: Callable[[int], None],
) -> Measured:
    """Sample responses to the questions of `task` and measure them.

    key: of this task, the same at every step, so that two models are compared on the same random numbers.
    greedy: also take the likeliest token everywhere, one response to each question. progress: see Sampler.
    Raises FloatingPointError if log-probs are not finite.
    """
    prompts, sets = parts.encode(task.items), []
    samplers = [parts.sample_for_eval, parts.sample_greedy] if greedy else [parts.sample_for_eval]
    for sample in samplers:
        rollouts, texts = sample(params, prompts, key, progress=progress)
        answers = distributed.each(lambda group: [task.extract(text) for text in group], texts)
        ballots = distributed.each(vote, answers)
        rendered = parts.render(task.items)
        rows = generations(task.items, rendered, texts, answers, ballots, rollouts, None, truths(task.items))
        sets.append((rollouts, texts, answers, rows))
    rollouts, texts, answers, rows = sets[0]
    greedy_answers = None
    if greedy:
        greedy_answers = [group[0] for group in sets[1][2]]
        rows = [row | {"greedy": other["samples"][0]} for row, other in zip(rows, sets[1][3], strict=True)]
    found = evaluate(
        answers,
        rollouts,
        truths(task.items),
        extra_k=extra_k,
        greedy=greedy_answers,
        formed=in_format(texts, task.in_format),
        readings={name: [[read(text) for text in group] for group in texts] for name, read in task.readings.items()},
    )
    return Measured(found, rows)


def in_format(texts: Sequence[Sequence[str]], test: Callable[[str], bool] | None) -> np.ndarray | None:
    """Which of the responses pass the test of a format, bool [P, V]; None where there is no format."""
    return None if test is None else np.array([[test(text) for text in group] for group in texts])


def task_keys(seed: int, count: int) -> list[jax.Array]:
    """A random key for each of `count` tasks, by its place in eval.tasks; the first is of the config's own data."""
    root = jax.random.key(seed)
    return [jax.random.fold_in(root, 1 + i) for i in range(count)]  # 0 is training's


def evaluate(
    answers: Sequence[Sequence[Answer | None]],
    rollouts: Rollouts,
    truths: Sequence[str] | None,
    *,
    extra_k: Sequence[int],
    greedy: Sequence[Answer | None] | None,
    formed: np.ndarray | None,
    readings: Mapping[str, Sequence[Sequence[Answer | None]]],
) -> dict[str, float]:
    """Summarise k samples of each problem.

    answers [P][k], of `rollouts`; truths [P], or None where there are none; greedy [P], the answers at temperature 0;
    formed bool [P, k], the samples that are in the format, or None without one; readings: name -> answers [P][k], the
    same samples read in another way.
    Always: majority_ratio, truncation_rate, no_answer_rate, response_length (tokens), with a format format_rate (share
    of samples in it), and of each reading NAME_valid_rate (share of samples in which it finds an answer). With truths,
    each a mean over problems: avg@k (share of correct samples, the paper's pass@1), std@k (spread of a problem's
    samples), worst@k (all k correct), greedy (share of correct greedy answers), and for j = 2, 4, 8 ..., k and those of
    `extra_k`: pass@j (unbiased, arXiv 2107.03374), maj@j (exact, ties split evenly) and best_of@j (exact: of j samples,
    the one with the highest mean log-prob of its tokens is correct); of each reading NAME_avg@k, NAME_pass@j and
    NAME_maj@j likewise.
    Raises FloatingPointError if log-probs are not finite.
    """
    ballots = [vote(group) for group in answers]
    k = rollouts.lengths.shape[1]
    result = {
        "majority_ratio": float(np.mean([max(ballot.counts, default=0) / k for ballot in ballots])),
        "truncation_rate": float(rollouts.truncated.mean()),
        "no_answer_rate": float(np.mean([answer is None for group in answers for answer in group])),
        "response_length": float(rollouts.lengths.mean()),
    }
    if formed is not None:
        result["format_rate"] = float(formed.mean())
    for name, read in readings.items():
        result[f"{name}_valid_rate"] = float(np.mean([answer is not None for group in read for answer in group]))
    if truths is None:
        return result
    scores = mean_logps(rollouts)
    if not np.isfinite(scores).all():
        raise FloatingPointError("the log-probs of sampled tokens are not finite")
    sizes = sorted({*(2**i for i in range(1, k.bit_length())), k, *extra_k})
    right = truth_classes(ballots, truths)
    result |= _accuracies(ballots, right, sizes)
    correct = np.array([[c is not None and i == c for i in b.classes] for b, c in zip(ballots, right, strict=True)])
    shares = correct.mean(1)
    result[f"std@{k}"] = float(np.sqrt(shares * (1 - shares)).mean())
    result[f"worst@{k}"] = float((shares == 1).mean())
    if greedy is not None:
        found = truth_classes([vote([answer]) for answer in greedy], truths)
        result["greedy"] = float(np.mean([c is not None for c in found]))
    for j in sizes:
        best = [best_of_n(*each, j) for each in zip(scores.tolist(), correct.tolist(), strict=True)]
        result[f"best_of@{j}"] = float(np.mean(best))
    for name, read in readings.items():
        its = [vote(group) for group in read]
        found = _accuracies(its, truth_classes(its, truths), sizes)
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


def mean_logps(rollouts: Rollouts) -> np.ndarray:
    """Mean log-prob of each response's tokens, float64 [P, V]."""
    real = np.arange(rollouts.logps.shape[2]) < rollouts.lengths[..., None]
    return np.where(real, rollouts.logps, 0).sum(2, dtype=np.float64) / rollouts.lengths


def generations(
    problems: Sequence[Problem],
    prompts: Sequence[str],
    texts: Sequence[Sequence[str]],
    answers: Sequence[Sequence[Answer | None]],
    ballots: Sequence[Ballot],
    rollouts: Rollouts,
    rewards: np.ndarray | None,
    truths: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """One JSON-ready row for each problem: question, prompt as the model sees it, label and every response with answer,
    class and reward.

    With `truths`, also the truth and `right`, the class that it is in (None: nobody gave it).
    """
    rows, scores = [], mean_logps(rollouts)
    right = None if truths is None else truth_classes(ballots, truths)
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
            for v, (text, answer) in enumerate(zip(texts[p], answers[p], strict=True))
        ]
        label = None if ballot.label is None else ballot.answers[ballot.label].text
        rows.append(
            {
                "id": problem.id,
                "question": problem.question,
                "prompt": prompts[p],
                "label": label,
                "counts": list(ballot.counts),
                "samples": samples,
            }
            | ({} if truths is None else {"truth": truths[p], "right": right[p]})
        )
    return rows


def table(columns: dict[str, dict[str, float]], *, samples: int, extra_k: Sequence[int]) -> str:
    """The results side by side as plain text; columns: title -> what `evaluate` returned for `samples` of each."""
    names = [f"{name}@{samples}" for name in ("avg", "maj", "pass", "best_of")] + ["greedy"]
    names += [f"{name}@{j}" for j in sorted({*extra_k} - {samples}) for name in ("maj", "pass", "best_of")]
    for reading in ("strict", "flexible"):
        names += [f"{reading}_{name}" for name in ("valid_rate", f"avg@{samples}")]
        names += [f"{reading}_{name}@{j}" for j in sorted({*extra_k, samples}) for name in ("maj", "pass")]
    names += ["majority_ratio", "format_rate", "no_answer_rate", "truncation_rate", "response_length"]
    names = [name for name in names if any(name in result for result in columns.values())]
    width, widths = max(len(name) for name in names), [max(15, len(title)) for title in columns]
    lines = [" " * width + "".join(f"  {title:>{w}}" for title, w in zip(columns, widths, strict=True))]
    for name in names:
        shown = [f"{result[name]:.3f}" if name in result else "-" for result in columns.values()]
        lines.append(f"{name:<{width}}" + "".join(f"  {x:>{w}}" for x, w in zip(shown, widths, strict=True)))
    return "\n".join(lines)


def headline(result: dict[str, float], *, samples: int) -> str:
    """The main numbers of a result on one line."""
    names = [f"avg@{samples}", f"maj@{samples}", "greedy", "majority_ratio", "no_answer_rate"]
    return ", ".join(f"{name} {result[name]:.3f}" for name in names if name in result)


def introduce(inputs: builder.EvalInputs, say: Callable[[str], None]) -> None:
    """Print what was resolved: model, devices, questions, settings, and the first prompt as the model sees it."""
    config, device = inputs.config, jax.devices()[0]
    count = parameter_count(inputs.model) / 1e6
    say(f"model     {config.model.path}: {count:.2f} M parameters, {config.model.dtype} compute")
    say(f"devices   {jax.device_count()} x {device.device_kind}, mesh {dict(inputs.mesh.shape)}")
    if distributed.several():
        say(f"processes {jax.process_count()}, with {jax.local_device_count()} devices each")
    say(f"attention {inputs.model.attention}, {inputs.attention}")
    for i, task in enumerate(inputs.tasks):
        blind = truths(task.items) is None
        say(
            ("task      " + task.name + ", " if i else "data      ")
            + f"{task.path}: {len(task.items)} questions"
            + (f"; no column {task.truth_column!r}: no accuracy is measured" if blind else "")
        )
    for key, source in inputs.sources.items():
        section, name = key.split(".")
        say(f"setting   {key}={config[section][name]!r}, {source}")
    say(f"prompt    {inputs.encoder.render(inputs.tasks[0].items[0].question)!r}")

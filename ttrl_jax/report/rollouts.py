"""The questions of a run with their votes over time and their generations, as the page shows them."""

import re
from collections.abc import Mapping
from typing import Any

from ttrl_jax.report.data import Run
from ttrl_jax.reward.equivalence import key, same
from ttrl_jax.reward.extract import Answer
from ttrl_jax.run.files import ROLLOUTS, VOTES
from ttrl_jax.run.metrics import read_lines
from ttrl_jax.tasks.sets import OWN

TRAINING = "training"  # the set of the visits of training steps
_LONGEST = 8_000  # characters of a text; the answer is near the end of a response, so the middle is left out
_BARS = 40  # answers of a ballot that are listed

Question = dict[str, Any]


def read_questions(run: Run) -> list[Question]:
    """The questions that the files in rollouts/ hold, those of training first. Adds to `run.notes` what cannot be read.

    Each: run, set ("training" or the name of a task), id, question, prompt (as the model sees it; None where that was
    not written down), truth (text, None where it is not known), judged (whether the truth is known), visits as `visit`
    makes them, history as `course` makes it, and the flags of `flags`.
    """
    questions: dict[tuple[str, str, str], Question] = {}
    order: list[tuple[str, str]] = []  # of the run's own questions
    for path in sorted((run.path / ROLLOUTS).glob("*.jsonl")):
        match = re.fullmatch(r"(train|eval_(.+))_(\d+)", path.stem)
        if match is None:
            continue
        rows, damaged = read_lines(path)
        names = []
        for row in rows:
            try:
                made = visit(row, int(match[3]))
                place = (match[2] or TRAINING, str(row["id"]), str(row["question"]))
            except (KeyError, TypeError, ValueError, IndexError):
                damaged += 1
                continue
            names.append(place[1:])
            known = questions.setdefault(place, _question(run.name, *place))
            known["visits"].append(made)
            if "prompt" in row:
                known["prompt"] = short(str(row["prompt"]))
            if "truth" in row:
                known["truth"], known["judged"] = row["truth"], True
        if damaged:
            run.notes.append(f"{damaged} of the rows of rollouts/{path.name} cannot be read and are left out")
        elif match[2] == OWN and len(names) == run.questions.get(OWN):
            order = names
    votes = _votes(run, order)
    for name in votes:  # those of which no step wrote the generations down are known from the evaluations
        known = questions.setdefault((TRAINING, *name), _question(run.name, TRAINING, *name))
        if not known["visits"]:
            known |= {each: questions[OWN, *name][each] for each in ("prompt", "truth", "judged")}
    for (which, *name), question in questions.items():
        question["visits"].sort(key=lambda each: each["step"])
        told = votes.get(tuple(name), []) if which == TRAINING else []
        question["history"] = course(question, told, own_task=bool(run.settings.get("task")))
        question |= flags(question)
        if told:
            last = max(told, key=lambda row: row["step"])
            question |= {"silent": last["no_answer"], "length": round(last["length"], 1)}
    number = {name: i for i, name in enumerate(order)}
    return sorted(questions.values(), key=lambda each: (each["set"] != TRAINING, _place(each, number)))


def _place(question: Question, number: Mapping[tuple[str, str], int]) -> int:
    """The number in the data of a question of training, as far as it is known; others stay in their order."""
    return number.get((question["id"], question["question"]), 0) if question["set"] == TRAINING else 0


def _question(run: str, which: str, name: str, text: str) -> Question:
    known = {"run": run, "set": which, "id": name, "question": short(text)}
    return known | {"prompt": None, "truth": None, "judged": False, "visits": []}


def _votes(run: Run, order: list[tuple[str, str]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Every visit of votes.jsonl by (id, text) of its question. order: these of all questions, by their numbers;
    without it nothing is known, as votes.jsonl has the numbers alone."""
    rows, damaged = read_lines(run.path / VOTES)
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if not _is_vote(row):
            damaged += 1
        elif 0 <= row["question"] < len(order):
            found.setdefault(order[row["question"]], []).append(row)
    if damaged:
        run.notes.append(f"{damaged} of the lines of {VOTES} cannot be read and are left out")
    return found


def _is_vote(row: Mapping[str, Any]) -> bool:
    kinds = {"step": int, "question": int, "label": str | None, "share": int | float, "flipped": bool | None}
    kinds |= {"no_answer": int, "length": int | float}
    return kinds.keys() <= row.keys() and all(isinstance(row[name], kind) for name, kind in kinds.items())


def visit(row: Mapping[str, Any], step: int) -> dict[str, Any]:
    """What the page shows of one row of generations. Raises KeyError, TypeError, ValueError or IndexError if it is
    none.

    Returns step; label (that was rewarded), majority (the votes' answer; runs from before that was written down have
    it as their label), share and majority_share (of the votes, for these), votes, right and majority_right (whether
    they are the truth; None where that is not known, or where no label was given to a majority); hit_ratio (share of
    the responses that a wrong label rewards as the truth would; None for other labels); no_answer, unformed (responses
    without an answer, and out of the format; None without a format), length (tokens of a response, mean); ballot,
    [class, answer, votes, right] by votes, at most 40, and others, [answers, votes] of the rest; samples, [response,
    answer, class, reward, tokens, truncated, right, formed, tokens' texts and log-probs or None] each.
    """
    label = row["label"]
    majority = row["majority"] if "majority" in row else label
    if not all(each is None or isinstance(each, str) for each in (label, majority)):
        raise TypeError("a label is a text or null")
    counts, judged = [int(count) for count in row["counts"]], "truth" in row
    right = row["right"] if judged else None
    samples = [_sample(sample, judged, right) for sample in row["samples"]]
    # The label's class is that of the samples with its text: of several with the most votes, ties may have drawn one.
    classes = {sample[1]: sample[2] for sample in reversed(samples) if sample[1] is not None}
    texts = {sample[2]: sample[1] for sample in reversed(samples) if sample[2] is not None}
    label_class, won = (classes[each] if each in classes else None for each in (label, majority))
    ranked = sorted(texts, key=lambda kind: (-counts[kind], kind))
    formed = [sample[7] for sample in samples if sample[7] is not None]
    is_right = lambda kind: kind is not None and kind == right if judged else None  # noqa: E731
    return {
        "step": step,
        "label": label,
        "majority": majority,
        "share": 0.0 if label_class is None else round(counts[label_class] / len(samples), 4),
        "majority_share": 0.0 if won is None else round(counts[won] / len(samples), 4),
        "hit_ratio": _hits(samples, label_class) if is_right(label_class) is False else None,
        "votes": len(samples),
        "right": None if label is None and majority is not None else is_right(label_class),
        "majority_right": is_right(won),
        "no_answer": len(samples) - sum(counts),
        "unformed": formed.count(False) if formed else None,
        "length": round(sum(sample[4] for sample in samples) / len(samples), 1),
        "ballot": [[kind, texts[kind], counts[kind], is_right(kind)] for kind in ranked[:_BARS]],
        "others": [len(ranked[_BARS:]), sum(counts[kind] for kind in ranked[_BARS:])],
        "samples": samples,
    }


def _hits(samples: list[list[Any]], label: int | None) -> float:
    return round(sum((sample[2] == label) == sample[6] for sample in samples) / len(samples), 4)


def _sample(sample: Mapping[str, Any], judged: bool, right: int | None) -> list[Any]:
    kind, answer = sample["class"], sample["answer"]
    if not (answer is None or isinstance(answer, str)):
        raise TypeError("an answer is a text or null")
    return [
        short(sample["response"]),
        answer,
        kind,
        sample["reward"] if "reward" in sample else None,
        sample["tokens"],
        sample["truncated"],
        kind is not None and kind == right if judged else None,
        sample["in_format"] if "in_format" in sample else None,
        sample["token_logps"] if "token_logps" in sample else None,
    ]


def course(question: Question, votes: list[Mapping[str, Any]], *, own_task: bool = False) -> list[list[Any]]:
    """[step, majority's answer, its share, whether that is the truth (None: not known), flipped] of every visit.

    votes: the question's lines of votes.jsonl; without them, of the visits that were written down. Whether an answer of
    votes.jsonl is the truth is known where generations have judged it; else it is compared with the truth, unless the
    run has a task of its own, whose way to compare is not at hand.
    """
    if votes:
        seen = {}
        for each in question["visits"]:
            seen |= {answer: right for _, answer, _, right in each["ballot"] if right is not None}
        for row in votes:
            label, truth = row["label"], question["truth"]
            if question["judged"] and label not in seen and not own_task:
                seen[label] = isinstance(label, str) and isinstance(truth, str) and same(Answer(label), Answer(truth))
        return [
            [row["step"], row["label"], round(row["share"], 4), seen.get(row["label"]), row["flipped"]]
            for row in sorted(votes, key=lambda row: row["step"])
        ]
    found: list[list[Any]] = []
    before = None
    for each in question["visits"]:
        won = None if each["majority"] is None else key(Answer(each["majority"]))
        flipped = None if not found else won != before
        found.append([each["step"], each["majority"], each["majority_share"], each["majority_right"], flipped])
        before = won
    return found


def flags(question: Question) -> dict[str, Any]:
    """What one filters and sorts by: wrong (its last label that was written down is not the truth), flips (times that
    its majority changed), became_right and became_wrong (its majority, from the first visit to the last), silent and
    unformed (responses of the last visit without an answer, and out of the format), share (of the last majority),
    change (of that since the first visit) and length (tokens of a response at the last visit)."""
    history = question["history"]
    first, now = history[0][3], history[-1][3]
    # Where nothing was written down, what the majority says.
    last = (
        question["visits"][-1] if question["visits"] else {"right": now, "no_answer": 0, "unformed": None, "length": 0}
    )
    return {
        "wrong": last["right"] is False,
        "flips": sum(flipped is True for *_, flipped in history),
        "became_right": first is False and now is True,
        "became_wrong": first is True and now is False,
        "silent": last["no_answer"],
        "unformed": last["unformed"],
        "share": history[-1][2],
        "change": round(history[-1][2] - history[0][2], 4),
        "length": last["length"],
    }


def short(text: str) -> str:
    """The text, without its middle if it is very long."""
    left_out = len(text) - _LONGEST
    if left_out <= 0:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n[... {left_out} characters left out ...]\n{text[-half:]}"

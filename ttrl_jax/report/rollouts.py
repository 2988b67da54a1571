"""The questions of a run with their labels over time and their generations, as the page shows them."""

import json
import re
from collections.abc import Sequence
from typing import Any

from ttrl_jax.report.data import Run
from ttrl_jax.reward.equivalence import key
from ttrl_jax.reward.extract import Answer
from ttrl_jax.run.metrics import read_lines

# The page stays under 8 MB: this much for questions and labels, and for generations.
QUESTION_BYTES, RESPONSE_BYTES = 2_000_000, 4_000_000
_LONGEST = 8_000  # characters of a text; the answer is near the end of a response, so the middle is left out

Question = dict[str, Any]


def read_questions(run: Run) -> list[Question]:
    """The questions that the files in rollouts/ hold, in their order. Adds to `run.notes` what cannot be read.

    Each: run, set ("training" or the name of a task), id, question, prompt (as the
    model sees it; None where that was not written down), truth (text, None where it is not known), judged
    (whether the truth is known), wrong (its last label is not the truth), flipped (its majority changed between two
    visits that were written down) and visits. A visit: step, label (that was rewarded), majority (the votes' answer;
    runs from before that was written down have it as their label), share and majority_share (of the votes, for these),
    votes, right (whether the label is the truth; None where that is not known), and samples, each [response, answer,
    class, reward, tokens, truncated, right]. Majorities are compared by key.
    """
    questions: dict[tuple[str, str, str], Question] = {}
    for path in sorted((run.path / "rollouts").glob("*.jsonl")):
        match = re.fullmatch(r"(train|eval_(.+))_(\d+)", path.stem)
        if match is None:
            continue
        rows, damaged = read_lines(path)
        for row in rows:
            try:
                made = visit(row, int(match[3]))
                place = (match[2] or "training", str(row["id"]), str(row["question"]))
            except (KeyError, TypeError, ValueError, IndexError):
                damaged += 1
                continue
            known = questions.setdefault(place, _question(run.name, *place))
            known["visits"].append(made)
            if "prompt" in row:
                known["prompt"] = short(str(row["prompt"]))
            if "truth" in row:
                known["truth"], known["judged"] = row["truth"], True
        if damaged:
            run.notes.append(f"{damaged} of the rows of rollouts/{path.name} cannot be read and are left out")
    for question in questions.values():
        visits = question["visits"] = sorted(question["visits"], key=lambda each: each["step"])
        won = [None if each["majority"] is None else key(Answer(each["majority"])) for each in visits]
        question["flipped"] = any(a != b for a, b in zip(won, won[1:], strict=False))
        question["wrong"] = visits[-1]["right"] is False
    return sorted(questions.values(), key=lambda question: question["set"] != "training")


def _question(run: str, which: str, name: str, text: str) -> Question:
    known = {"run": run, "set": which, "id": name, "question": short(text)}
    return known | {"prompt": None, "truth": None, "judged": False, "visits": []}


def visit(row: dict[str, Any], step: int) -> dict[str, Any]:
    """One row of generations. Raises KeyError, TypeError, ValueError or IndexError if it is not one."""
    label = row["label"]
    majority = row["majority"] if "majority" in row else label
    if not all(each is None or isinstance(each, str) for each in (label, majority)):
        raise TypeError("a label is a text or null")
    counts, judged = [int(count) for count in row["counts"]], "truth" in row
    right = row["right"] if judged else None
    samples = [
        [
            short(sample["response"]),
            sample["answer"],
            sample["class"],
            sample["reward"] if "reward" in sample else None,
            sample["tokens"],
            sample["truncated"],
            sample["class"] is not None and sample["class"] == right if judged else None,
        ]
        for sample in row["samples"]
    ]
    # The label's class is that of the samples with its text: of several with the most votes, ties may have drawn one.
    classes = {answer: kind for _, answer, kind, *_ in reversed(samples) if answer is not None}
    label_class, won = (classes[each] if each in classes else None for each in (label, majority))
    return {
        "step": step,
        "label": label,
        "majority": majority,
        "share": 0.0 if label_class is None else round(counts[label_class] / len(samples), 4),
        "majority_share": 0.0 if won is None else round(counts[won] / len(samples), 4),
        "votes": len(samples),
        "right": label_class is not None and label_class == right if judged else None,
        "samples": samples,
    }


def short(text: str) -> str:
    """The text, without its middle if it is very long."""
    left_out = len(text) - _LONGEST
    if left_out <= 0:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n[... {left_out} characters left out ...]\n{text[-half:]}"


def embed(value: Any) -> str:
    """JSON that can stand in a <script> element: without any <, so that no text can end the element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def size(value: Any) -> int:
    """Bytes of `embed`."""
    return len(embed(value).encode("utf-8", errors="backslashreplace"))


def fit(questions: Sequence[Question]) -> tuple[list[Question], list[str]]:
    """The questions with as many generations as the page has room for, evenly spaced, and a sentence on what is left.

    The questions themselves are thinned out likewise if there are too many. Nothing given is changed.
    """
    notes = []
    bare = [question | {"visits": [each | {"samples": []} for each in question["visits"]]} for question in questions]
    kept = evenly([size(each) for each in bare], QUESTION_BYTES)
    if len(kept) < len(questions):
        notes.append(f"{len(kept)} of {len(questions)} questions are shown, evenly spaced: all are too many for a page")
    shown = [bare[i] for i in kept]
    samples = [
        (visit, sample)
        for i, question in zip(kept, shown, strict=True)
        for visit, source in zip(question["visits"], questions[i]["visits"], strict=True)
        for sample in source["samples"]
    ]
    chosen = evenly([size(sample) for _, sample in samples], RESPONSE_BYTES)
    for i in chosen:
        samples[i][0]["samples"].append(samples[i][1])
    if len(chosen) < len(samples):
        notes.append(
            f"{len(chosen)} of {len(samples)} generations are shown, evenly spaced: all are too many for a page; "
            "labels and shares are of all votes"
        )
    return shown, notes


def evenly(sizes: Sequence[int], budget: int) -> list[int]:
    """Indices, evenly spaced, of entries that take at most `budget` together: all, if they fit."""
    kept = list(range(len(sizes)))
    total = sum(sizes) + len(sizes)  # a comma after each
    share = 1.0
    while total > budget:
        share *= min(0.98, budget / total)
        kept = [i for i in range(len(sizes)) if int((i + 1) * share) > int(i * share)]
        total = sum(sizes[i] for i in kept) + len(kept)
    return kept

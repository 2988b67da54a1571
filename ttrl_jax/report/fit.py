"""What the page has room for: it stays under 8 MB."""

import json
from collections.abc import Sequence
from typing import Any

# Beside these: plotly's script, 2 MB packed; curves; and page, tables and settings.
QUESTION_BYTES, RESPONSE_BYTES, FORMULA_BYTES, CURVE_BYTES = 1_300_000, 2_600_000, 500_000, 900_000


def embed(value: Any) -> str:
    """JSON that can stand in a <script> element: without any <, so that no text can end the element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def size(value: Any) -> int:
    """Bytes of `embed`."""
    return len(embed(value).encode("utf-8", errors="backslashreplace"))


def fit(questions: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The questions with as many generations as the page has room for, evenly spaced, and sentences on what is left.

    If the questions without generations are too many, ballots go first, but for the first and the last of each
    question; then questions, evenly spaced. Nothing given is changed.
    """
    notes = []
    bare = [question | {"visits": [each | {"samples": []} for each in question["visits"]]} for question in questions]
    if sum(map(size, bare)) > QUESTION_BYTES:
        visits = sum(len(question["visits"]) for question in bare)
        for question in bare:
            question["visits"] = question["visits"][:1] + question["visits"][1:][-1:]
        if (left := sum(len(question["visits"]) for question in bare)) < visits:
            notes.append(f"{left} of {visits} ballots are shown, each question's first and last: all are too many")
    kept = evenly([size(each) for each in bare], QUESTION_BYTES)
    if len(kept) < len(questions):
        notes.append(f"{len(kept)} of {len(questions)} questions are shown, evenly spaced: all are too many for a page")
    shown = [bare[i] for i in kept]
    samples = [
        (visit, sample)
        for i, question in zip(kept, shown, strict=True)
        for visit in question["visits"]
        for source in questions[i]["visits"]
        if source["step"] == visit["step"]
        for sample in source["samples"]
    ]
    chosen = evenly([size(sample) for _, sample in samples], RESPONSE_BYTES)
    for i in chosen:
        samples[i][0]["samples"].append(samples[i][1])
    if len(chosen) < len(samples):
        notes.append(
            f"{len(chosen)} of {len(samples)} generations are shown, evenly spaced: all are too many for a page; "
            "ballots and shares are of all votes"
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

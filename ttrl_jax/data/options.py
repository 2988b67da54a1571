"""Multiple-choice prompts of data that has a question, its answer and three wrong ones: the columns of GPQA."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ttrl_jax.errors import InputError

QUESTION, ID = "Question", "Record ID"
ANSWERS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
COLUMNS = {QUESTION, ID, *ANSWERS}

_LETTERS = "ABCD"


def has_options(columns: Sequence[str], question_column: str) -> bool:
    """Whether data is multiple choice: it has the columns of GPQA, and its question is asked for in no other."""
    return {QUESTION, *ANSWERS} <= set(columns) and (question_column == QUESTION or question_column not in columns)


def with_options(path: str, rows: Sequence[dict[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """The rows as `id`, `question` and `answer`: the question with its options in lines that begin with A. to D., and
    the letter of the right one.

    The order of the options depends on (seed, the row's "Record ID") alone; without that column on its number. Raises
    InputError for a row that lacks one of the texts.
    """
    made = []
    for i, row in enumerate(rows):
        texts = []
        for name in (QUESTION, *ANSWERS):
            value = row.get(name)
            texts.append("" if value is None or value != value else str(value).strip())  # NaN is no text
            if not texts[-1]:
                raise InputError(f"{path}: column {name!r} is empty in row {i} (the first is 0); fill it in.")
        question, *answers = texts
        key = str(row.get(ID) or i)
        order = _order(seed, key)
        lines = [f"{letter}. {answers[which]}" for letter, which in zip(_LETTERS, order, strict=True)]
        made.append({"id": key, "question": "\n".join([f"{question}\n", *lines]), "answer": _LETTERS[order.index(0)]})
    return made


def _order(seed: int, key: str) -> list[int]:
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16]))).permutation(len(ANSWERS)).tolist()

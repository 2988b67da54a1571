"""Golden: a table of answers checked by hand: which are the same, which are not, what a response answers, who wins.

Rows of `golden/answers.jsonl`, by `kind`, each with its `reason`:
  equal, different   a, b: two answers
  extract            strategies, thinking, response; answer: the text of the answer, or null
  vote               answers (null: none given); label: the winning answer as first written; counts by class; tied
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from ttrl_jax.reward.equivalence import classes
from ttrl_jax.reward.extract import Answer, extract
from ttrl_jax.reward.vote import vote

ROWS = [json.loads(line) for line in (Path(__file__).parent / "golden/answers.jsonl").read_text().splitlines()]


def rows(*kinds: str) -> list:
    return [pytest.param(row, id=f"{i + 1}: {row['reason']}") for i, row in enumerate(ROWS) if row["kind"] in kinds]


def answer(text: str | None) -> Answer | None:
    return None if text is None else Answer(text)


def test_table_is_whole() -> None:
    """A kind without rows would leave its test without a case, which pytest passes over in silence."""
    kinds = Counter(row["kind"] for row in ROWS)
    assert set(kinds) == {"equal", "different", "extract", "vote"} and kinds.total() >= 600
    assert min(kinds["equal"], kinds["different"]) >= 200 and kinds["extract"] >= 110 and kinds["vote"] >= 40
    assert all(row["reason"] for row in ROWS)
    asked = Counter(json.dumps({name: row[name] for name in row if name != "reason"}) for row in ROWS)
    assert [text for text, times in asked.items() if times > 1] == []


@pytest.mark.parametrize("row", rows("equal", "different"))
def test_pair(row: dict) -> None:
    a, b = Answer(row["a"]), Answer(row["b"])
    second = 0 if row["kind"] == "equal" else 1
    assert classes([a, b]) == classes([b, a]) == [0, second]
    assert classes([a, a]) == classes([b, b]) == [0, 0]


@pytest.mark.parametrize("row", rows("extract"))
def test_extract(row: dict) -> None:
    found = extract(row["response"], strategies=tuple(row["strategies"]), thinking=row["thinking"])
    assert found == answer(row["answer"])


@pytest.mark.parametrize("row", rows("vote"))
def test_vote(row: dict) -> None:
    ballot = vote([answer(text) for text in row["answers"]])
    assert (None if ballot.label is None else ballot.answers[ballot.label].text) == row["label"]
    assert list(ballot.counts) == row["counts"]
    assert ballot.tied is row["tied"]

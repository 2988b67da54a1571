"""Golden table of extractions, linear time on hostile responses, and no second pass through the extractor."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from ttrl_jax.errors import InputError
from ttrl_jax.reward.extract import Answer, closing_brace, extract

ROWS = [json.loads(line) for line in (Path(__file__).parent / "golden/answers.jsonl").read_text().splitlines()]

MB = 1_000_000
HOSTILE = {
    "boxes that never close": r"\boxed{",
    "boxes without a brace": r"\boxed ",
    "closed boxes": r"\boxed{1}",
    "macro names that only start like a box": r"\boxedx",
    "opening braces": "{",
    "closing braces": "}",
    "back-slashes": "\\",
    "escaped braces": r"\{",
    "digits": "7",
    "thousands": ",000",
    "LaTeX thousands": "{,}000",
    "fractions": "1/",
    "points": ".",
    "versions": "1.2.",
    "signs": "-",
    "spaces": " ",
}


def test_golden_table_is_whole() -> None:
    """A kind without rows would leave its test without a case, which pytest passes over in silence."""
    assert {row["kind"] for row in ROWS} == {"extract", "pair", "vote"} and len(ROWS) >= 80
    reasons = Counter((row["kind"], row["why"]) for row in ROWS)
    assert [name for name, times in reasons.items() if times > 1 or not name[1]] == []


@pytest.mark.parametrize("row", [r for r in ROWS if r["kind"] == "extract"], ids=lambda row: row["why"])
def test_golden(row: dict) -> None:
    expected = None if row["answer"] is None else Answer(row["answer"])
    assert extract(row["text"], strategies=tuple(row["strategies"]), thinking=False) == expected


def test_order_of_the_strategies_decides() -> None:
    text = r"\boxed{6} of 7"
    assert extract(text, strategies=("boxed", "last_number"), thinking=False) == Answer("6")
    assert extract(text, strategies=("last_number", "boxed"), thinking=False) == Answer("7")


@pytest.mark.parametrize("strategy", ["boxed", "last_number"])
def test_an_answer_does_not_go_through_twice(strategy: str) -> None:
    answer = extract(r"\boxed{\frac{3}{4}}", strategies=("boxed",), thinking=False)
    assert answer == Answer(r"\frac{3}{4}")
    with pytest.raises(TypeError, match=r"\(str\), got Answer"):
        extract(answer, strategies=(strategy,), thinking=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("response", [None, 42, rb"\boxed{42}"], ids=lambda response: type(response).__name__)
def test_only_text_is_read(response: object) -> None:
    with pytest.raises(TypeError, match=f"got {type(response).__name__}"):
        extract(response, strategies=("boxed",), thinking=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strategies", "got"), [(("box",), "box"), (("boxed", "Boxed", "sympy"), "Boxed, sympy"), ((), "none")]
)
def test_unknown_strategies_are_refused(strategies: tuple[str, ...], got: str) -> None:
    # The known strategy finds an answer: what matters is that the list is wrong, not that it was needed.
    with pytest.raises(InputError, match=rf"one or more of boxed, choice, last_number, got {got}\.$"):
        extract(r"\boxed{42}", strategies=strategies, thinking=False)


@pytest.mark.parametrize("strategy", ["boxed", "last_number"])
@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE.keys())
def test_linear_time_on_hostile_megabytes(piece: str, strategy: str) -> None:
    filling = piece * (MB // len(piece))
    # What precedes and follows makes both strategies read the filling: as the content of a box, as a long
    # number, after an unclosed box and before the end of one.
    texts = [filling, rf"\boxed{{{filling}", rf"\boxed{filling}x", f"1{filling}0x", rf"{filling}}} \boxed{{5}}"]
    for text in texts:
        start = time.perf_counter()
        answer = extract(text, strategies=(strategy,), thinking=False)
        assert time.perf_counter() - start < 5
    assert answer == Answer("5")  # of the last text


def test_depth_of_braces_is_not_limited() -> None:
    deep = "{" * (MB // 2) + "}" * (MB // 2)
    assert extract(rf"\boxed{{{deep}}}", strategies=("boxed",), thinking=False) == Answer(deep)


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [("{a}b", 1, 2), ("{a{b}c}", 1, 6), (r"{\}}", 1, 3), (r"{\\}", 1, 3), ("{a", 1, None), ("{{a}", 1, None)],
)
def test_closing_brace(text: str, start: int, end: int | None) -> None:
    assert closing_brace(text, start) == end

"""Hand-worked extractions, linear time on hostile responses, and no second pass through the extractor."""

import time

import pytest

from ttrl_jax.errors import InputError
from ttrl_jax.reward.extract import Answer, closing_brace, extract

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
    "letters that are said": "answer is (B",
    "sentences without a letter": "answer : ",
    "ends of thinking": "</think>",
}


def test_order_of_the_strategies_decides() -> None:
    text = r"\boxed{6} of 7"
    assert extract(text, strategies=("boxed", "last_number"), thinking=False) == Answer("6")
    assert extract(text, strategies=("last_number", "boxed"), thinking=False) == Answer("7")


CHOICES = {
    r"\boxed{B}": "B",
    r"\boxed{(B)}": "B",
    r"\boxed{B.}": "B",
    r"\boxed{ D) }": "D",
    r"\boxed{\text{B}}": "B",
    r"\boxed{\mathrm{ E }}": "E",
    r"\boxed{\text{(C)}}": "C",
    r"\boxed{\textbf{(A)}\ 12}": "A",
    r"\boxed{B. The second law} holds": "B",
    r"\boxed{\text{B. The second law}}": "B",
    r"\boxed{A}, no: \boxed{C}": "C",
    r"answer is A, so \boxed{C}": "C",
    r"\boxed{42} The answer is (B).": "B",  # the box holds no letter
    r"\boxed{E = mc^2}": None,
    r"\boxed{B_2}": None,
    r"\boxed{BC}": None,
    r"\boxed{(A, B)}": None,
    r"\boxed{b}": None,
    r"\boxed{F}": None,
    "The answer is (B).": "B",
    "Answer: B": "B",
    "**Answer: C**": "C",
    "**Answer:** D": "D",
    r"the correct ANSWER is $\text{A}$": "A",
    "The answer is A? No, the answer is B.": "B",
    r"Answer: C, or \boxed{": "C",  # a truncated box
    "The answer is Berlin": None,
    "Answer B was wrong": None,
    "It is (B)": None,
}


@pytest.mark.parametrize(("text", "letter"), CHOICES.items(), ids=CHOICES)
def test_choice(text: str, letter: str | None) -> None:
    """Hand-worked: spellings of a letter, and what only looks like one."""
    expected = None if letter is None else Answer(letter)
    assert extract(text, strategies=("choice",), thinking=False) == expected


THOUGHTS = [  # response, answer with thinking on, answer with thinking off
    (r"<think>perhaps \boxed{1}</think> \boxed{2}", "2", "2"),
    (r"perhaps \boxed{1}</think> \boxed{2}", "2", "2"),  # the prompt opened the thinking
    (r"<think>perhaps \boxed{1}</think> I do not know.", None, "1"),
    (r"<think>perhaps \boxed{1}", None, "1"),  # cut off while it thought
    (r"a</think>\boxed{1}</think>\boxed{2}", "2", "2"),
    (r"a</think>\boxed{1}</think>", None, "1"),
    (r"\boxed{1", None, None),
]


@pytest.mark.parametrize(("text", "on", "off"), THOUGHTS)
def test_thinking_is_no_answer(text: str, on: str | None, off: str | None) -> None:
    """Hand-worked: with thinking on, only what follows the last </think> counts."""
    assert extract(text, strategies=("boxed",), thinking=True) == (None if on is None else Answer(on))
    assert extract(text, strategies=("boxed",), thinking=False) == (None if off is None else Answer(off))


@pytest.mark.parametrize("strategy", ["boxed", "choice", "last_number"])
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


@pytest.mark.parametrize("strategy", ["boxed", "choice", "last_number"])
@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE.keys())
def test_linear_time_on_hostile_megabytes(piece: str, strategy: str) -> None:
    filling = piece * (MB // len(piece))
    # What precedes and follows makes both strategies read the filling: as the content of a box, as a long
    # number, after an unclosed box and before the end of one.
    last = "B" if strategy == "choice" else "5"
    texts = [
        filling,
        rf"\boxed{{{filling}",
        rf"\boxed{filling}x",
        f"1{filling}0x",
        rf"\boxed{{\text{{B{filling}x}}}}",
        f"answer{filling}x",
        rf"{filling}}} \boxed{{{last}}}",
    ]
    for text in texts:
        start = time.perf_counter()
        answer = extract(text, strategies=(strategy,), thinking=False)
        assert time.perf_counter() - start < 5
    assert answer == Answer(last)  # of the last text


def test_depth_of_braces_is_not_limited() -> None:
    deep = "{" * (MB // 2) + "}" * (MB // 2)
    assert extract(rf"\boxed{{{deep}}}", strategies=("boxed",), thinking=False) == Answer(deep)


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [("{a}b", 1, 2), ("{a{b}c}", 1, 6), (r"{\}}", 1, 3), (r"{\\}", 1, 3), ("{a", 1, None), ("{{a}", 1, None)],
)
def test_closing_brace(text: str, start: int, end: int | None) -> None:
    assert closing_brace(text, start) == end

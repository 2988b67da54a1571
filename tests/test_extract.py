"""Hand-worked extractions, linear time on hostile responses, and no second pass through the extractor."""

import time

import pytest

from ttrl_jax.errors import InputError
from ttrl_jax.reward.extract import Answer, extract, in_format

LONG = 250_000  # characters
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
    "opened tags": "<answer>",
    "closed tags": "</answer>",
    "pairs of tags": "<answer>1</answer>",
    "brackets of tags": "<",
    "said answers": "answer is 1. ",
    "decimal commas": "1,5 ",
}
STRATEGIES = ["boxed", "tag:answer", "number:answer", "tag_strict", "answer_is", "choice", "last_number"]


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
    r"\boxed{b}": "B",
    r"\boxed{F}": "F",
    r"\boxed{K}": None,
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
    (r"a</think>\boxed{1}</think>", "1", "1"),  # a second one after the answer
    (r"a</think>\boxed{1}</think> That is all.", "1", "1"),
    (r"<think>a</think>\boxed{1}<think>or \boxed{3}</think>", "1", "3"),  # it thinks again, and says nothing
    (r"<think>a</think>\boxed{1}<think>or \boxed{3}</think>\boxed{2}", "2", "2"),
    (r"a</think>\boxed{1}</think>\boxed{2", None, None),  # the last box decides, cut off as it is
    (r"<think>perhaps \boxed{1}</think></think>", None, "1"),
    (r"\boxed{1", None, None),
]


@pytest.mark.parametrize(("text", "on", "off"), THOUGHTS)
def test_thinking_is_no_answer(text: str, on: str | None, off: str | None) -> None:
    """Hand-worked: with thinking on, no thought counts; what follows the last </think> goes first."""
    assert extract(text, strategies=("boxed",), thinking=True) == (None if on is None else Answer(on))
    assert extract(text, strategies=("boxed",), thinking=False) == (None if off is None else Answer(off))


TAGS = [
    ("tag:answer", "<answer>42</answer>", "42"),
    ("tag:answer", "so <answer> 42\n</answer> it is", "42"),
    ("tag:answer", "<answer>1</answer> no, <answer>2</answer>", "2"),  # the last pair
    ("tag:answer", "<answer>1</answer> no, <answer>2", "1"),  # which is whole
    ("tag:answer", "<answer>1</answer></answer>", "1"),
    ("tag:answer", "<answer>1 <answer>2</answer> 3</answer>", "2"),
    ("tag:answer", "</answer>1<answer>", None),
    ("tag:answer", "<answer></answer>", None),
    ("tag:answer", "<answer>42", None),
    ("tag:answer", "<Answer>42</Answer>", None),
    ("tag:answer", "<answers>42</answers>", None),
    ("tag:answer", "<cevap>42</cevap>", None),
    ("tag:answer", r"\boxed{42}", None),
    ("tag:answer", r"<answer>\frac{1}{2} < 1</answer>", r"\frac{1}{2} < 1"),
    ("tag:cevap", "<mantık>3 + 4</mantık><cevap>7</cevap>", "7"),
    ("tag:mantık", "<mantık>3 + 4</mantık><cevap>7</cevap>", "3 + 4"),
    ("tag:réponse", "<réponse>7</réponse>", "7"),
    ("tag:a-1", "<a-1>7</a-1><a>8</a>", "7"),
    ("number:answer", "so <answer> 1,250 </answer> it is", "1,250"),
    ("number:answer", "<answer>1</answer> no, <answer>-2.5</answer>", "-2.5"),
    ("number:answer", "<answer>1</answer> no, <answer>two</answer>", None),  # the last pair decides
    ("number:answer", "<answer>42 pounds</answer>", None),
    ("number:answer", "<answer>x = 42</answer>", None),
    ("number:answer", "<answer></answer> 42", None),
    ("number:answer", "<answer>42", None),
    ("number:cevap", "<mantık>3 + 4</mantık><cevap>7</cevap>", "7"),
]


@pytest.mark.parametrize(("strategy", "text", "answer"), TAGS)
def test_tags(strategy: str, text: str, answer: str | None) -> None:
    """Hand-worked: what stands in the last pair of tags, and nothing else."""
    assert extract(text, strategies=(strategy,), thinking=False) == (None if answer is None else Answer(answer))


FORMATS = [  # response, names, answer; the answer of None is no answer, and the response is not in the format
    ("<think>3 + 4</think><answer>7</answer>", ("think", "answer"), "7"),
    ("\n <think>3 + 4</think>\n\n<answer> 7 </answer> \n", ("think", "answer"), "7"),
    ("<think></think><answer>7</answer>", ("think", "answer"), "7"),
    ("<mantık>3 + 4</mantık><cevap>7</cevap>", ("mantık", "cevap"), "7"),
    ("<answer>7</answer>", ("answer",), "7"),
    ("<a>1</a><b>2</b><c>3</c>", ("a", "b", "c"), "3"),
    ("<think>3 < 4</think><answer>x > 7</answer>", ("think", "answer"), "x > 7"),
    ("<answer>7</answer><think>3 + 4</think>", ("think", "answer"), None),  # the wrong order
    ("So: <think>3 + 4</think><answer>7</answer>", ("think", "answer"), None),
    ("<think>3 + 4</think> so <answer>7</answer>", ("think", "answer"), None),
    ("<think>3 + 4</think><answer>7</answer>.", ("think", "answer"), None),
    ("<think>3 + 4</think><answer>7</answer><answer>7</answer>", ("think", "answer"), None),
    ("<think>3 + 4</think><think></think><answer>7</answer>", ("think", "answer"), None),
    ("<think>is it <answer>6</answer>?</think><answer>7</answer>", ("think", "answer"), None),
    ("<think>3 + 4<answer>7</answer></think>", ("think", "answer"), None),
    ("<think>3 + 4</think><answer>7", ("think", "answer"), None),
    ("<think>3 + 4<answer>7</answer>", ("think", "answer"), None),
    ("<answer>7</answer>", ("think", "answer"), None),
    ("<THINK>3 + 4</THINK><answer>7</answer>", ("think", "answer"), None),
    ("", ("think", "answer"), None),
    (r"\boxed{7}", ("answer",), None),
]


@pytest.mark.parametrize(("text", "tags", "answer"), FORMATS)
def test_the_format_is_the_whole_response(text: str, tags: tuple[str, ...], answer: str | None) -> None:
    """Hand-worked: each tag once, in order, and nothing beside them; the reward and the strategy agree on it."""
    expected = None if answer is None else Answer(answer)
    assert extract(text, strategies=("tag_strict",), thinking=False, tags=tags) == expected
    assert in_format(text, tags=tags, thinking=False) == (answer is not None)


def test_an_empty_answer_is_in_the_format_and_no_answer() -> None:
    text = "<think>3 + 4</think><answer> </answer>"
    assert in_format(text, tags=("think", "answer"), thinking=False)
    assert extract(text, strategies=("tag_strict",), thinking=False, tags=("think", "answer")) is None


def test_the_format_comes_after_the_thoughts() -> None:
    text = "<think>perhaps <answer>6</answer></think> <answer>7</answer>"
    assert in_format(text, tags=("answer",), thinking=True)
    assert not in_format(text, tags=("answer",), thinking=False)
    assert not in_format("<answer>7</answer>", tags=("answer",), thinking=True)  # the thoughts were cut off
    assert extract(text, strategies=("tag_strict",), thinking=True, tags=("answer",)) == Answer("7")


SENTENCES = {
    "The answer is 42.": "42",
    "The answer is 42": "42",
    "The answer is 42. Check: 6 x 7.": "42",
    "The final answer is $3.14$. I hope it is correct.": "$3.14$",
    "Final answer: -3.5": "-3.5",
    "Final Answer: The final answer is $42$. I hope it is correct.": "$42$",
    "FINAL ANSWER:\n42": "42",
    "**Answer:** 42 apples\nor so": "42 apples",
    "**Answer**: 42": "42",
    "The answer is **42**.": "42",
    "The answer is: 1, 2 and 3. Next": "1, 2 and 3",
    "The answer is 5 p.m. today": "5 p.m",
    "Answer: 0.333...": "0.333...",
    'He said "the answer is 42." So': "42",
    "(The answer is 42.) So": "42",
    "The answer is $42.$ So": "$42",
    "The answer is 5! = 120.": "5! = 120",
    "The answer is 1. No, the answer is 2.": "2",
    "The answer is $$42$$ then": "42",
    "The answer is\n\\[\n x = 5 \n\\]\nDone": "x = 5",
    "The answer is (B) Berlin.": "(B) Berlin",
    "The answer is 42!": "42",
    "The answer is 42!!": "42",
    "The answer is 42! That was easy.": "42",
    "**The answer is 42!**": "42",
    "The answer is $5!$.": "$5!$",
    "The answer is 5!.": "5!",
    "The answer is 5! + 1": "5! + 1",
    "The answer is 5, because 2+3=5.": "5",
    "The answer is 5 because 2+3=5.": "5",
    "The answer is 5 since 2+3=5.": "5",
    "The answer is $x=5$, so we are done.": "$x=5$",
    "The answer is 5, not 6.": "5",
    "The answer is 5, which is prime.": "5",
    "The answer is 1, 2, and 3.": "1, 2, and 3",
    "**Answer**\n42": "42",
    "### Final Answer\n\n**42**": "42",
    "Answer\n$42$\nor so": "$42$",
    "**Final Answer**\n\n\\[42\\]": "42",
    "## Answer\nThe answer is 42.": "42",
    "The answer is": None,
    "The answer is.": None,
    "The answer 42": None,
    "It is 42.": None,
    "Cevap 42": None,
}


@pytest.mark.parametrize(("text", "answer"), SENTENCES.items(), ids=SENTENCES)
def test_answer_is(text: str, answer: str | None) -> None:
    """Hand-worked: from the last "answer is" or "Answer:" to the end of the sentence."""
    expected = None if answer is None else Answer(answer)
    assert extract(text, strategies=("answer_is",), thinking=False) == expected


def test_locales() -> None:
    """Hand-worked: the same text in three languages; a number of another language is no answer."""

    def read(text: str, *strategies: str) -> list[Answer | None]:
        return [extract(text, strategies=strategies, thinking=False, locale=name) for name in ("en", "tr", "de")]

    local, english = Answer("1234.5"), Answer("1,234.5")
    assert read(r"\boxed{1.234,5}", "boxed") == [Answer("1.234,5"), local, local]
    assert read(r"\boxed{1,234.5}", "boxed") == [english, None, None]
    # The box decides: no other strategy is asked about a number that it refused.
    assert read(r"7, \boxed{1,234.5}", "boxed", "last_number") == [english, None, None]
    assert read("<cevap>%12,5</cevap>", "tag:cevap") == [Answer("%12,5"), Answer("%12.5"), Answer("%12.5")]
    assert read("<cevap>1.234,5</cevap>", "number:cevap") == [None, local, local]
    assert read("<cevap>1.234,5 TL</cevap>", "number:cevap", "last_number") == [Answer("5"), local, local]
    assert read("<cevap>1,234.5</cevap> yani 7", "number:cevap", "last_number") == [english, None, None]
    assert read("Answer: 1.234,5 TL", "answer_is") == [Answer("1.234,5 TL")] + [Answer("1234.5 TL")] * 2
    assert read("1.234,5 eder", "last_number") == [Answer("5"), local, local]
    assert read("1,234.5 eder", "last_number") == [english, None, None]
    assert read(r"1,234.5 eder \boxed{7}", "answer_is", "boxed") == [Answer("7")] * 3  # nothing is not refused
    assert read("Answer: B", "choice") == [Answer("B")] * 3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_answer_does_not_go_through_twice(strategy: str) -> None:
    answer = extract(r"\boxed{\frac{3}{4}}", strategies=("boxed",), thinking=False)
    assert answer == Answer(r"\frac{3}{4}")
    with pytest.raises(TypeError, match=r"\(str\), got Answer"):
        extract(answer, strategies=(strategy,), thinking=False, tags=("answer",))  # type: ignore[arg-type]


@pytest.mark.parametrize("response", [None, 42, rb"\boxed{42}"], ids=lambda response: type(response).__name__)
def test_only_text_is_read(response: object) -> None:
    with pytest.raises(TypeError, match=f"got {type(response).__name__}"):
        extract(response, strategies=("boxed",), thinking=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strategies", "got"), [(("box",), "box"), (("boxed", "Boxed", "sympy"), "Boxed, sympy"), ((3,), "3"), ((), "none")]
)
def test_unknown_strategies_are_refused(strategies: tuple[str, ...], got: str) -> None:
    # The known strategy finds an answer: what matters is that the list is wrong, not that it was needed.
    known = "boxed, tag:NAME, number:NAME, tag_strict, answer_is, choice, last_number"
    with pytest.raises(InputError, match=rf"one or more of {known}, got {got}\.$"):
        extract(r"\boxed{42}", strategies=strategies, thinking=False)


@pytest.mark.parametrize(
    ("strategies", "more", "words"),
    [
        (("boxed", "tag:"), {}, "name of a tag.*got ''"),
        (("tag:a b",), {}, "name of a tag.*got 'a b'"),
        (("tag:</a>",), {}, "name of a tag.*got '</a>'"),
        (("tag:1",), {}, "name of a tag.*got '1'"),
        (("number:",), {}, "name of a tag.*got ''"),
        (("number:a b",), {}, "name of a tag.*got 'a b'"),
        (("boxed",), {"tags": ("think", "")}, "name of a tag.*got ''"),
        (("boxed",), {"tags": (1,)}, "name of a tag.*got 1"),
        (("boxed",), {"tags": ("a", "b", "a")}, "each tag of a format once, got a, b, a"),
        (("boxed", "tag_strict"), {}, "tag_strict, got none"),
        (("boxed",), {"locale": "fr"}, "locales en, tr, de, got 'fr'"),
        (("boxed",), {"locale": "tr_TR"}, "locales en, tr, de, got 'tr_TR'"),
    ],
)
def test_what_cannot_be_read_is_refused(strategies: tuple[str, ...], more: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        extract(r"\boxed{42}", strategies=strategies, thinking=False, **more)


@pytest.mark.parametrize(("strategy", "locale"), [*((name, "en") for name in STRATEGIES), ("last_number", "tr")])
@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE.keys())
def test_linear_time_on_hostile_text(piece: str, strategy: str, locale: str) -> None:
    filling = piece * (LONG // len(piece))
    # What precedes and follows makes the strategies read the filling: as the content of a box, as a long
    # number, after an unclosed box and before the end of one.
    last = "B" if strategy == "choice" else "5"
    texts = [
        filling,
        rf"\boxed{{{filling}",
        rf"\boxed{filling}x",
        f"1{filling}0x",
        rf"\boxed{{\text{{B{filling}x}}}}",
        f"answer{filling}x",
        f"answer: {filling}x",
        f"<answer>{filling}",
        f"<answer>{filling}</answer>",
        rf"{filling}}} \boxed{{{last}}} <answer>{last}</answer> answer is {last}",
    ]
    for text in texts:
        start = time.perf_counter()
        answer = extract(text, strategies=(strategy,), thinking=False, locale=locale, tags=("answer",))
        assert time.perf_counter() - start < 2
    if strategy != "tag_strict":  # the last text is not in the format
        assert answer == Answer(last)


def test_depth_of_braces_is_not_limited() -> None:
    deep = "{" * LONG + "}" * LONG
    assert extract(rf"\boxed{{{deep}}}", strategies=("boxed",), thinking=False) == Answer(deep)

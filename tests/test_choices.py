"""Hand-worked: letters of multiple-choice answers in every usual spelling, and none out of prose."""

import itertools
import time

import pytest

from ttrl_jax.reward.choices import LETTERS, boxed_letter, offered, said_letter
from ttrl_jax.reward.extract import Answer, extract

QUESTION = "Which planet is largest?\n\nA. Mars\nB. The planet Jupiter\nC. $3 \\times 10^{4}$ km\nD. Earth (ours)"
# %: the letter, @: the text of its option
SENTENCES = [
    "The answer is %.", "The answer is (%).", "The answer is **%**.", "The answer is **(%)**.", "The answer is $%$.",
    r"The answer is \(\text{%}\).", r"The answer is $\text{%}$", r"The answer is $\mathbf{(%)}$.", "The answer is: %",
    "The answer is option %.", "The answer is **option %**.", "The answer is choice (%).", "The answer is therefore %.",
    "The answer is, therefore, %.", "The answer, therefore, is %.", "The answer is most likely %.", "The answer is %!",
    "The correct answer is %.", "The correct answer is option %", "The correct answer is (%) @.",
    "The correct answer is %. @", "The correct answer is %) @", "The correct answer is **%. @**",
    "The correct answer would be %.", "The correct answer must be %", "The correct option is %.",
    "The correct option is (%).", "The correct choice is (%).", "the correct choice is %", "The best choice is **%**.",
    "The final answer is (%)", "Answer: %", "Answer: (%)", "Answer: **%**", "Answer: %.", "Answer: <%>", "Answer: [%]",
    "Answer: %. @", "Answer: %) @", "Answer: (%) @", "Answer: %: @", "Answer: % - @", "Answer: $%$", "Answer:\n%",
    "**Answer:** %", "**Answer**: (%)", "**Answer: %**", "ANSWER: %", "Final answer: %", "**Final Answer:** (%)",
    "### Final Answer\n\n**%**", "### Answer\n%", "**Answer**\n\n(%) @", "## Final answer\n$%$",
    "**Final Answer**\n%. @",
    "The answer is % because @ fits.", "The answer is %, as @ fits.", "The answer is % (@).", "My answer is \"%\".",
    "So the answer is: \n\n**(%)**", "The answer is clearly %.", "The answer is the letter %.", "Option: %",
    "Choice: %.",
]  # fmt: skip
BOXES = [
    "%", "(%)", "%.", "%)", "[%]", "**%**", "$%$", r"\text{%}", r"\textbf{%}", r"\mathrm{%}", r"\mathbf{%}",
    r"\textbf{(%)}",
    r"\text{(%)}", "Option %", r"\text{Option %}", r"\text{Option } %", "option (%)", r"\text{Choice %}", "Answer: %",
    r"\text{Answer: %}", "%. @", "%) @", "(%) @", "%: @", "% - @", "% \u2014 @", r"\text{%. @}", r"\text{(%) @}",
    r"\textbf{(%) } @", r"\textbf{(%)}\ @", r"\mathcal{%}", r"\,%\,", " % ", r"\text{ % }", r"\underline{%}",
]  # fmt: skip
OPTIONS = {"A": "Mars", "B": "The planet Jupiter", "C": r"$3 \times 10^{4}$ km", "D": "Earth (ours)"}
BEFORE = ["", "Let us see. A body may be large.\n", 'I thought of C first, and "the answer is D" is said.\n']
AFTER = ["", "\n\nI hope it helps.", " "]


def read(text: str, question: str = QUESTION) -> str | None:
    found = extract(text, strategies=("choice",), thinking=False, offered=offered(question))
    return None if found is None else found.text


def ways(letter: str) -> list[str]:
    said = [*SENTENCES, *(rf"The answer is $\boxed{{{box}}}$." for box in BOXES)]
    return [way.replace("%", letter).replace("@", OPTIONS[letter]) for way in said]


def test_there_are_many_ways() -> None:
    assert len(set(ways("B"))) == len(SENTENCES) + len(BOXES) >= 90


@pytest.mark.parametrize("letter", OPTIONS)
def test_every_way_to_say_a_letter(letter: str) -> None:
    for way in ways(letter):
        for before, after in itertools.product(BEFORE, AFTER):
            assert read(before + way + after) == letter, before + way + after
        assert read(way, question="Which planet is largest?") == letter, way  # none are shown


@pytest.mark.parametrize("letter", LETTERS)
def test_all_ten_letters(letter: str) -> None:
    question = "What?\n" + "\n".join(f"{other}. text" for other in LETTERS)
    for way in ("The answer is ({}).", r"\boxed{{{}}}", "Answer: {}", r"\boxed{{\text{{{}}}}}", "**Answer**\n{}"):
        assert read(way.format(letter), question) == letter
        assert read(way.format(letter)) == (letter if letter in "ABCD" else None)  # four are shown
    assert read(rf"\boxed{{{letter.lower()}}}", question) == letter
    assert read(f"The answer is ({letter.lower()}).", question) == letter


PROSE = [
    "Answer: A molecule absorbs light.",
    "Answer: A polygenic risk score",
    "The answer is C-14 dating.",
    "Answer: E = mc^2",
    "The answer is E = mc^2.",
    "The answer is A very large number",
    "The answer is a.c. current",
    "The answer is a molecule.",
    "The answer is a",
    "The answer is D_4.",
    "The answer is B2.",
    "The answer is C'.",
    "The answer is Berlin",
    "The answer is A so-called effect.",
    "The answer is A and C.",
    "The answer is (A) and (C).",
    "The answer is (a) or (b).",
    "The answer is A, B, and D.",
    "The answer is A or B",
    "The answer is not B.",
    "It is (B)",
    "Answer B was wrong",
    "**Answer**\nA molecule absorbs light.",
    r"\boxed{A}, \boxed{B}",
    r"\boxed{A} and \boxed{B}",
    r"\boxed{A, B}",
    r"\boxed{(A) and (B)}",
    r"\boxed{(A)(B)}",
    r"\boxed{A - B}",
    r"\boxed{B = 2}",
    r"\boxed{C_2}",
    r"\boxed{BC}",
    r"\boxed{\text{Because}}",
    r"\boxed{42}",
    r"\boxed{}",
]


@pytest.mark.parametrize("text", PROSE)
def test_no_letter_out_of_prose(text: str) -> None:
    expected = "A" if text == "The answer is a" else None  # nothing follows it
    assert read(text) == expected
    assert read(text, question="") == expected


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is E.", None),
        (r"\boxed{E}", None),
        ("The answer is B. Another answer is E.", "B"),
        (r"\boxed{E} The answer is (C).", "C"),
        ("The answer is I, I think.", None),
        ("The answer is B, I think.", "B"),
        ("The answer is B, not C.", "B"),
        ("The answer is A? No, the answer is B.", "B"),
        ("The answer is (B). (A) is too small.", "B"),
        (r"The answer is C, so \boxed{\text{Option } D}", "D"),
        (r"\boxed{42} The answer is (B).", "B"),
    ],
)
def test_only_what_is_offered(text: str, letter: str | None) -> None:
    assert read(text) == letter


@pytest.mark.parametrize(
    ("question", "letters"),
    [
        (QUESTION, "ABCD"),
        ("Q\n(A) 1\n(B) 2\n(C) 3", "ABC"),
        ("Q\nA) 1\nB) 2", "AB"),
        ("Q (A) 1 (B) 2 (C) 3 (D) 4 (E) 5", "ABCDE"),
        (r"Q $\textbf{(A) }12 \qquad\textbf{(B) }13 \qquad\textbf{(C)}\ 14$", "ABC"),
        ("Q\n- A: 1\n- B: 2", "AB"),
        ("Q\n**A.** 1\n**B.** 2", "AB"),
        ("Q\n" + "\n".join(f"{letter}. x" for letter in LETTERS), LETTERS),
        ("Q\n" + "\n".join(f"{letter}. x" for letter in LETTERS + "K"), LETTERS),
        ("Points (A) and (C) lie on a line.", ""),
        ("A. Einstein wrote it.", ""),
        ("Let f(A) be g(B).", ""),
        ("", ""),
    ],
)
def test_offered(question: str, letters: str) -> None:
    assert offered(question) == letters


@pytest.mark.parametrize(
    "piece",
    [
        "A. ",
        "(A)",
        "answer is ",
        "answer is (A) and ",
        "Answer\n",
        "**",
        " ",
        r"\text{",
        "option B ",
        "A - ",
        "B)",
        "\n",
    ],
)
def test_linear_time(piece: str) -> None:
    filling = piece * (250_000 // len(piece))
    for text in (
        filling,
        f"answer is {filling}",
        f"B{filling}",
        f"B {filling}x",
        rf"\text{{{filling}B",
        f"A{filling}x",
    ):
        start = time.process_time()
        said_letter(text, among=LETTERS)
        boxed_letter(text, among=LETTERS)
        offered(text)
        assert time.process_time() - start < 2


def test_the_answer_is_the_bare_letter() -> None:
    assert extract(r"\boxed{\text{(b)}}", strategies=("choice",), thinking=False) == Answer("B")

r"""Hand-worked: what the last box of a response holds, lists of boxes, and what stands outside of a box."""

import itertools
import time

import pytest

from ttrl_jax.reward.boxes import closing_brace, last_box

PLAIN = {
    r"so \boxed{5}": "5",
    r"so \boxed 5": "5",
    r"so $\boxed5$": "5",
    r"so \boxed 42, as 40 + 2 = 42": "42",
    r"so $\boxed -1.5$.": "-1.5",
    r"so \boxed 1,250.": "1,250",
    r"so $\boxed x$": "x",
    r"\fbox{5}": "5",
    r"\framebox{5}": "5",
    r"\framebox[2cm][c]{5}": "5",
    r"\boxed {5}": "5",
    r"\boxed{\boxed{5}}": "5",
    r"\boxed{5} = \boxed{\frac{10}{2}}": r"\frac{10}{2}",
    r"\boxed{5}. No: \boxed{6}": "6",
    r"\boxed{5}, no: \boxed{6}": "6",
    r"\boxed{5} \boxed{6}": "6",
    r"\boxed{1} no no no no no \boxed{2}": "2",
    r"\boxed{5} is \boxed{": "",
    r"\boxed{5} and \boxed{}": "",
    r"\boxed{}": "",
    r"the macro \boxed is not used": "",
    r"\boxedx{5}": "",
    r"\boxed five": "",
}
ASKED = [
    r"I should put it in \boxed{}.",
    r"Please reason step by step, and put your final answer within \boxed{}.",
    r"Put it in $\boxed{}$.",
    r"They want it inside `\boxed{}`.",
    r"The format is a \boxed{...}, which is given.",
    r"The result goes into \boxed{\text{answer}}.",
    r"I write it with \boxed{your answer} at the end.",
    r"It has to be written using \boxed.",
    r"请把答案放在\boxed{}中。",
]
LISTS = {
    r"\boxed{(2,2)} and \boxed{(6,2)}": "(2,2), (6,2)",
    r"$\boxed{(2, 2)} \quad \text{and} \quad \boxed{(6, 2)}$": "(2, 2), (6, 2)",
    r"\(\boxed{1}\) and \(\boxed{-2}\).": "1, -2",
    r"\boxed{1},\boxed{2},\boxed{3}": "1, 2, 3",
    r"\boxed{1}, \boxed{2}, and \boxed{3}.": "1, 2, 3",
    r"$\boxed{1}$; $\boxed{2}$": "1, 2",
    r"either \boxed{1} or \boxed{2}": "1, 2",
    r"**\boxed{1}** and **\boxed{2}**": "1, 2",
    r"\boxed{1} papers and \boxed{2} bins": "1, 2",
    r"$$\boxed{(3, 3)} \text{ for part (a) and } \boxed{(1, 1)}$$": "(3, 3), (1, 1)",
    r"$x = \boxed{1}$ or $x = \boxed{2}$": "1, 2",
    r"\(y_1 = \boxed{x + 5} \) and \( y_2 = \boxed{3x - 2} \)": "y_1 = x + 5, y_2 = 3x - 2",
    r"$x=\boxed{1}, y=\boxed{2}$": "x = 1, y = 2",
    r"$\boxed{k = 45}$ and $\boxed{n = 2}$": "k = 45, n = 2",
    r"\boxed{7}. Then \boxed{1} and \boxed{2}": "1, 2",
    r"\boxed{5}, \boxed{5}": "5",
    r"$x = -\boxed{1}$ and $x = \boxed{2}$": "-1, 2",
}
OUTSIDE = {
    r"$x = -\boxed{5}$": "-5",
    r"$x = - \boxed{\frac{1}{2}}$": r"-\frac{1}{2}",
    r"$-\boxed{a+b}$": "-(a+b)",
    r"the answer is -\boxed{5}": "-5",
    r"Answer: -\boxed{1,250}": "-1,250",
    r"$\pm\boxed{5}$": r"\pm 5",
    r"$x = -\boxed{-5}$": "-(-5)",
    r"\boxed{5} \times 10^3": r"5 \times 10^3",
    r"\boxed{5.2}\times10^{-3}": r"5.2 \times10^{-3}",
    r"\boxed{5} \cdot 10^{3}": r"5 \cdot 10^{3}",
    r"\boxed{5}^2": "5^2",
    r"\boxed{a+b}^{2}": "(a+b)^{2}",
    r"\boxed{90}^\circ": r"90^\circ",
    r"\boxed{5}_{8}": "5_{8}",
    r"\boxed{101}_2": "101_2",
    r"\boxed{28} pct": r"28\%",
    r"\boxed{28}%": r"28\%",
    r"$\boxed{28}\%$": r"28\%",
    r"$\boxed{28}$ percent of them": r"28\%",
    r"$\boxed{28} \text{ percent}$": r"28\%",
    r"\boxed{28} percentage points": "28",
    r"\boxed{28\%} percent": r"28\%",
    r"$7-\boxed{5}$": "5",
    r"$7$ $-\boxed{5}$ is $2$": "-5",
    r"7 - \boxed{5}": "5",
    "So:\n- \\boxed{5}": "5",
    "the result - \\boxed{5}": "5",
    r"$x = -\boxed{1, 2}$": "1, 2",
    r"$x = -\boxed{\text{none}}$": r"\text{none}",
    r"\boxed{x = 3}^2": "x = 3",
    r"the $\boxed{4}^{th}$ term": "4",
    r"\boxed{4}^{[2]}": "4",
    r"$\boxed{5}$!": "5",
    r"_\boxed{5}_": "5",
    r"\boxed{5} \times 2": "5",
}
CASES = PLAIN | LISTS | OUTSIDE


@pytest.mark.parametrize(("text", "content"), CASES.items(), ids=CASES)
def test_last_box(text: str, content: str) -> None:
    assert last_box(text) == content


@pytest.mark.parametrize("asked", ASKED)
def test_a_box_that_is_asked_for_is_none(asked: str) -> None:
    assert last_box(asked) == ""
    assert last_box(rf"So it is \boxed{{5}}. {asked}") == "5"
    assert last_box(rf"{asked} {asked} So it is \boxed{{6}}. {asked} {asked}") == "6"
    assert last_box(rf"{asked} I put it in \boxed{{7}}.") == "7"


ITEMS = ["1", "-2", r"\frac{3}{4}", "(2,2)", r"x\sqrt{2}", r"\text{red}"]
MATH = ["{}", "${}$", r"\({}\)", r"$${}$$"]
JOINTS = [", ", "; ", " and ", ", and ", " or ", r" \text{ and } ", "、"]


def test_lists_in_any_dress() -> None:
    """Invariance: how the boxes of a list are joined and wrapped changes nothing."""
    for a, b in itertools.permutations(ITEMS, 2):
        for math, joint in itertools.product(MATH, JOINTS):
            one, other = (math.format(rf"\boxed{{{item}}}") for item in (a, b))
            assert last_box(f"So we get {one}{joint}{other}.") == f"{a}, {b}"


@pytest.mark.parametrize(
    "piece",
    [
        r"\boxed{1}, ", r"\boxed{1} and ", r"in \boxed{}", r"in \boxed{", r"x=\boxed{1}, y=\boxed{2}, ", r"-\boxed{",
        r"\boxed{1}^2", r"\boxed{1} papers and ", r"\boxed 1", r"\boxed{x}\times10^", r"\framebox[", r"\boxed{} in ",
    ],
)  # fmt: skip
def test_linear_time(piece: str) -> None:
    for text in (piece * (250_000 // len(piece)), piece * (250_000 // len(piece)) + "}" * 30_000):
        start = time.process_time()
        last_box(text)
        assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [("{a}b", 1, 2), ("{a{b}c}", 1, 6), (r"{\}}", 1, 3), (r"{\\}", 1, 3), ("{a", 1, None), ("{{a}", 1, None)],
)
def test_closing_brace(text: str, start: int, end: int | None) -> None:
    assert closing_brace(text, start) == end

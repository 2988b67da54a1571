"""Properties of keys and extraction on random input: what must hold for any text, not only for the golden table.

Slow twin (Fraction) and invariance. Deterministic: hypothesis draws the same examples in each run.
"""

import time
from fractions import Fraction

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ttrl_jax.reward.equivalence import classes, key
from ttrl_jax.reward.extract import Answer, extract

QUICK = settings(max_examples=200, deadline=None, derandomize=True, database=None)

# Pieces of LaTeX that can stand in any order, with all kinds of damage between them.
PIECES = [
    *"0 1 12 025 3.50 1,234 1{,}234 x y X ( ) [ ] { } , ; . / ^ _ + - = < > | ! % $ : Evelyn cm".split(),
    *r"\frac \dfrac \sqrt \pi \infty \pm \cup \text{ \text{cm} \left \right \{ \} \\ \, \! \ \% \circ ^\circ".split(),
    *r"\leq \in \begin{pmatrix} \end{pmatrix} & \cot \log \boxed{ \boxed \fbox{ </think> answer".split(),
    "\u2212",
    "\u00e9",
    " ",
    "\n",
    "answer is ",
    "<answer>",
    "</answer>",
]
messy = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)
any_text = st.one_of(messy, st.text(max_size=60))
fractions = st.builds(Fraction, st.integers(-400, 400), st.sampled_from([1, 2, 3, 4, 5, 7, 8, 10, 12, 50, 100]))


def same(a: str, b: str) -> bool:
    return key(Answer(a)) == key(Answer(b))


@st.composite
def spelled(draw: st.DrawFn, value: Fraction) -> str:
    """One of the ways to write a number."""
    times = draw(st.integers(1, 9))
    sign, a, b = "-" if value < 0 else "", abs(value.numerator) * times, value.denominator * times
    ways = [f"{sign}{a}/{b}", rf"{sign}\frac{{{a}}}{{{b}}}", rf"\dfrac{{{sign}{a}}}{{{b}}}", f"{sign} {a} / {b}"]
    if value.denominator == 1:
        n = abs(value.numerator)
        ways += [f"{sign}{n}", f"{sign}{n}.0", f"{sign}{n:05d}", f"{sign}{n * 1000}e-3", rf"{sign}{n}\times 10^{{0}}"]
    if 10**6 % value.denominator == 0:
        ways.append(f"{sign}{abs(value.numerator) * 10**6 // value.denominator}e-6")
        ways.append(f"{float(value):.6f}")
        ways.append(rf"{float(value * 100):.6f}\%")
    around = draw(
        st.sampled_from(["{}", " {} ", "${}$", "{}.", r"\({}\)", r"\text{{{}}}", r"\left({}\right)", "x = {}"])
    )
    return around.format(draw(st.sampled_from(ways)))


@st.composite
def formulas(draw: st.DrawFn, depth: int = 3) -> tuple:
    """A formula as a tree: a leaf, or an operator with its operands."""
    if depth == 0 or draw(st.booleans()):
        return ("leaf", draw(st.sampled_from(["x", "y", r"\pi", "2", "3", "7", "10", r"\sqrt{2}", r"\theta"])))
    operator = draw(
        st.sampled_from(["+", "-", "frac", "power", "root", "sin", "pair"] if depth == 3 else ["+", "frac"])
    )
    return (operator, draw(formulas(depth - 1)), draw(formulas(depth - 1)))


def latex(tree: tuple, style: "Style") -> str:
    if tree[0] == "leaf":
        return style.number(tree[1])
    a, b = latex(tree[1], style), latex(tree[2], style)
    gap = style.gap()
    match tree[0]:
        case "frac":
            return rf"{style.frac()}{{{gap}{a}}}{{{b}{gap}}}"
        case "power":
            return rf"\left({a}\right)^{{{gap}2}}"
        case "root":
            return rf"\sqrt{{{gap}{a}{gap}}}"
        case "sin":
            return rf"\sin{style.open()}{gap}{b}{style.close()}"
        case "pair":
            return f"{style.open()}{a},{gap}{b}{style.close()}"
    return f"{style.open()}{a}{gap}{tree[0]}{gap}{b}{style.close()}"


class Style:
    """Choices of spelling that change nothing: gaps, sizes of brackets and fractions, zeros before a number."""

    def __init__(self, draw: st.DataObject | None) -> None:
        self.data = draw
        self.opened: list[bool] = []

    def _any(self, *ways: str) -> str:
        return ways[0] if self.data is None else self.data.draw(st.sampled_from(ways))

    def gap(self) -> str:
        return self._any("", " ", r"\,", r"\ ", "  ", r"\; ")

    def frac(self) -> str:
        return self._any(r"\frac", r"\dfrac", r"\tfrac")

    def open(self) -> str:
        self.opened.append(self._any("plain", "large") == "large")
        return r"\left(" if self.opened[-1] else "("

    def close(self) -> str:
        return r"\right)" if self.opened.pop() else ")"

    def number(self, leaf: str) -> str:
        return self._any(leaf, f"0{leaf}", f"{leaf}.0") if leaf.isdigit() else leaf


@QUICK
@given(fractions, fractions, st.booleans(), st.data())
def test_numbers_have_one_key_exactly_when_they_are_equal(a: Fraction, b: Fraction, alike: bool, data) -> None:
    b = a if alike else b
    assert same(data.draw(spelled(a)), data.draw(spelled(b))) is (a == b)


@QUICK
@given(formulas(), st.data())
def test_key_does_not_change_with_the_look(tree: tuple, data) -> None:
    assert same(latex(tree, Style(None)), latex(tree, Style(data)))


@QUICK
@given(any_text, st.sampled_from([" {} ", "\n{}", "\\,{}", "{}\\;", "~{}"]))
def test_space_around_any_text_changes_nothing(text: str, around: str) -> None:
    assume("\\" not in text[-1:])  # the space would belong to the back-slash
    assert same(text, around.format(text))


@QUICK
@given(any_text)
def test_keys_never_fail_and_are_bounded(text: str) -> None:
    name = key(Answer(text))
    assert name == key(Answer(text)) and len(name) <= 300
    assert classes([Answer(text), None, Answer(text)]) in ([0, None, 0], [None, None, None])


@settings(QUICK, max_examples=40)
@given(formulas(depth=2), formulas(depth=2))
def test_equality_is_symmetric(one: tuple, other: tuple) -> None:
    a, b = (Answer(latex(tree, Style(None))) for tree in (one, other))
    assert classes([a, b]) == classes([b, a])
    assert classes([a, b, a]) == [*classes([a, b]), 0]


balanced = st.recursive(
    st.text(alphabet="xyz059 +-=,.()[]|&%$\n\u00e9", max_size=6)
    | st.sampled_from([r"\{", r"\}", r"\frac", r"\\", r"\pi"]),
    lambda inner: st.lists(inner, max_size=3).map("".join) | inner.map(lambda text: f"{{{text}}}"),
    max_leaves=8,
)
macros = st.sampled_from([r"\boxed", r"\fbox", r"\boxed "])
unboxed = st.text(max_size=30) | messy.map(lambda text: text.replace("box", "bax"))


@QUICK
@given(unboxed, balanced, unboxed)
def test_what_is_boxed_comes_out(before: str, content: str, after: str) -> None:
    found = extract(rf"{before}\boxed{{{content}}}{after}", strategies=("boxed",), thinking=False)
    assert found == (Answer(content.strip()) if content.strip() else None)


@QUICK
@given(
    st.lists(st.tuples(st.sampled_from([r"\boxed", r"\fbox", r"\boxed "]), balanced, unboxed), min_size=1, max_size=4)
)
def test_the_last_box_wins(boxes: list[tuple[str, str, str]]) -> None:
    response = "".join(f"{macro}{{{content}}}{after}" for macro, content, after in boxes)
    last = boxes[-1][1].strip()
    assert extract(response, strategies=("boxed",), thinking=False) == (Answer(last) if last else None)


STRATEGIES = ("boxed", "answer_is", "choice", "last_number", "tag:answer")


@QUICK
@given(any_text, st.sampled_from(STRATEGIES), st.booleans())
def test_extraction_never_fails_and_finds_what_is_there(response: str, strategy: str, thinking: bool) -> None:
    found = extract(response, strategies=(strategy,), thinking=thinking)
    assert found is None or (found.text and found.text == found.text.strip() and found.text in response)
    said = response.rpartition("</think>")
    assert not thinking or found == (extract(said[2], strategies=(strategy,), thinking=False) if said[1] else None)


@settings(QUICK, max_examples=15)
@given(messy.filter(bool), st.sampled_from(STRATEGIES))
def test_extraction_takes_linear_time(piece: str, strategy: str) -> None:
    """A pass over 200,000 characters takes milliseconds; a quadratic one would take hours."""
    response = piece * (200_000 // len(piece))
    start = time.process_time()
    extract(response, strategies=(strategy,), thinking=False)
    assert time.process_time() - start < 2


@settings(QUICK, max_examples=15)
@given(messy.filter(bool))
def test_keys_take_linear_time(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    start = time.process_time()
    key(Answer(text))
    assert time.process_time() - start < 2

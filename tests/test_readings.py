r"""Semantics: families of spellings and of near misses, in any order, and that no kind of text ends a vote."""

import json
import random
from itertools import combinations, permutations, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttrl_jax.reward.equivalence import cluster, key, same
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.keys import read
from ttrl_jax.reward.symbolic import equal
from ttrl_jax.reward.vote import classes_of, vote

QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None)

ITEMS = [
    *r"\text{red} \text{Yes} HHH 101_2 \text{1A}_{16} x 5 -1 \frac12 \sqrt2 B \infty \emptyset 50\% 7! \pi".split(),
    *(r"6 pm", r"6:30 \text{ p.m.}", r"f(x)", r"\gcd(m,n)", r"3 \pmod 7", r"\text{M}", "x>2", r"x \ne 3", r"1 \pm i"),
    *("2¹⁰", "x₁", "２", "\u0663", "\ud800", "\x00", "٣", "½", "[1,2)", "(0,1)", "a<b<c", r"5\text{ cm}", "dy/dx"),
]  # fmt: skip
WHOLES = [
    "{0}, {1}",
    r"\{{{0}, {1}\}}",
    "({0}, {1})",
    r"[{0}, {1})",
    r"{0} \cup {1}",
    r"{0} \text{{ or }} {1}",
    r"{0} and {1}",
    r"\text{{{0} and {1}}}",
    "{0} = {1}",
    "{0} < {1}",
    r"\begin{{pmatrix}} {0} \\ {1} \end{{pmatrix}}",
    r"\{{x : {0}, {1}\}}",
    "(B) {0}",
    r"x = {0}, y = {1}",
    "{0}:{1}",
    r"\frac{{{0}}}{{{1}}}",
    "{0}",
]
texts = st.builds(lambda way, a, b: way.format(a, b), st.sampled_from(WHOLES), *[st.sampled_from(ITEMS)] * 2)


@QUICK
@given(st.lists(texts | st.text(max_size=20), min_size=2, max_size=4))
def test_no_kind_of_text_ends_a_vote(group: list[str]) -> None:
    votes = [Answer(text) for text in group]
    ballot = vote([*votes, None, *votes])
    assert ballot.classes[: len(group)] == ballot.classes[len(group) + 1 :]


APART = [
    *combinations([r"\{\text{red}, \text{blue}\}", r"\{\text{red}, \text{green}\}", r"\text{red}, \text{red}"], 2),
    *combinations(["6 pm, 7 pm", "6 pm, 8 pm", "6 am or 7 pm"], 2),
    *combinations([r"\{101_2, 11_2\}", r"\{110_2, 11_2\}"], 2),
    *combinations(["5", "5, 5", "5, 5, 5"], 2),
    *combinations([r"(\text{Yes},\text{No})", r"(\text{No},\text{Yes})", r"(\text{No},\text{No})"], 2),
    *combinations([r"\pm 1 \pm i", "1+i,-1-i", "1-i,-1+i"], 2),
    *combinations(["a<b<c", "a<d<c", "(a,c)"], 2),
    *combinations([r"20\text{ increase}", r"20\text{ decrease}", "20"], 2),
    *((f"{f}(x)+{f}(y)", f"{f}(x+y)") for f in "fghFGHPQT"),
    *((rf"\{f} x (1+\cos x)", rf"\{f}(x(1+\cos x))") for f in ("sin", "cos", "tan", "ln")),
    *((rf"\{f}(m,n)", other) for f, other in product(("gcd", "lcm"), ("1", "mn", r"\gcd(a,b)"))),
    *(("x+y=1", value) for value in ("1", r"\lfloor 1.5 \rfloor", r"\max(1,0)")),
    *((rf"\{{x : {condition}\}}", r"\emptyset") for condition in ("x>2", "0<x<2", "x^2=2")),
    *((f"{a}={n}", f"{b}={n}") for (a, b), n in product(combinations("xyn", 2), ("5", r"\sqrt2"))),
    *((f"{a}<{b}", rf"(-\infty,{b})") for a, b in permutations("xy", 2)),
    *(
        (rf"5\text{{ {word}}}", "5")
        for word in "tenths thirds halves thousand thousandths factorial squared lakh M dozen more".split()
    ),
    *((f"{n}!!", f"{n}!") for n in (5, 6, 7)),
    *((f"x{'⁰¹²³⁴⁵⁶⁷⁸⁹'[n]}{'⁰¹²³⁴⁵⁶⁷⁸⁹'[n + 1]}", f"x^{n + 1}") for n in range(1, 8)),
    (r"\frac{dy}{dx}", r"\frac{y}{x}"),
    (r"\sqrt{x^2}", "x"),
    *combinations(["1/12", "0.0833333", "0.0833333333343333", "0.0833333333323333"], 2),
    *combinations([r"\sum_{k=1}^n k", r"\sum_{k=0}^n k", r"\sum_{k=1}^n k^2", r"\prod_{k=1}^n k", "k"], 2),
    ("a_{n+1}", "a_{n-1}"),
    (r"\{(1,3),(2,4)\}", r"\{(1,4),(2,3)\}"),
]


@pytest.mark.parametrize(("a", "b"), APART)
def test_apart(a: str, b: str) -> None:
    assert cluster([Answer(a), Answer(b)]).ids == cluster([Answer(b), Answer(a)]).ids == (0, 1)


NUMBER = "142"
AROUND = [
    *(r"\color{{red}}{0}|\textcolor{{blue}}{{{0}}}|\underline{{{0}}}|\boldsymbol{{{0}}}".split("|")),
    *(r"\text{{The answer is }} {0}|\text{{Answer: }} {0}|{0} \text{{ is the answer}}|{0}?|= {0}".split("|")),
    *(r"\left. {0} \right.|\therefore {0}|\approx {0}|x:={0}|{0}{{}}^\circ|{0}^\text{{o}}|{0}^o".split("|")),
    *(r"m+n = {0}|a+b+c={0}|p+q={0}|AB^2 = {0}|100m+n={0}|ab = {0}|{{{0} \over 1}}|{0}\tag{{1}}".split("|")),
    *(r"{0}^\circ C|{0}\,\Omega|{0}\,\mu\text{{m}}|{0} \frac{{\text{{m}}}}{{\text{{s}}}}|{0} m|{0}元".split("|")),
    *(r"{0}\text{{ sec}}|{0}\text{{ times}}|{0} \mathrm{{ft}}/\mathrm{{sec}}|\text{{{0}}}^\circ|{0}¢|{0}。".split("|")),
    *(r'"{0}"|(B) {0}|\textbf{{(B) }} {0}|B) {0}|C. {0}|\text{{\$}}{0}|{0}\text{{ red balls}}'.split("|")),
]  # fmt: skip


@pytest.mark.parametrize("around", AROUND)
def test_what_stands_around_a_value(around: str) -> None:
    for value in (NUMBER, "1,234") if "over" not in around else (NUMBER,):
        assert same(Answer(around.format(value)), Answer(value)), around


ALIKE = [
    r"\sqrt{xy}|\sqrt x\sqrt y",
    r"\ln(ab)|\ln a+\ln b",
    r"2\ln x|\ln x^2",
    r"\sqrt{x^3}|x\sqrt x",
    r"\sqrt[3]{-x}|-\sqrt[3]x",
    r"\sqrt[3]{x^3}|x",
    r"\sin x(1+\cos x)|(1+\cos x)\sin x",
    r"\sin x e^x|e^x\sin x",
    r"(1011)_2|1011_{\text{base }2}|1011_{\text{binary}}|1011_2|1011",
    r"\text{1A}_{16}|1A_{16}",
    r"(0, \pm 3)|(0,3),(0,-3)",
    r"(\pm1,\pm2)|(1,2),(1,-2),(-1,2),(-1,-2)",
    r"x_1 = 1, x_2 = 2|1, 2|x=1,2|x_1=2, x_2=1",
    r"\{1,3\}\cup\{2,4\}|\{1,2,3,4\}",
    r"\{x|-2\leq x<1\}|[-2,1)|\{x : -2 \le x < 1\}|\{x \in \mathbb{R} \mid -2\le x<1\}",
    r"\{(x,y):x=y\}|\{(x, y) \mid x = y\}",
    r"x>1 \text{ and } x<3|(1,3)|x>1, x<3|1<x<3",
    r"x\ge1, x\ne2|[1,2)\cup(2,\infty)",
    r"\frac\pi4+k\pi, k\in\mathbb Z|\frac\pi4+n\pi, n\in\mathbb Z|\frac\pi4+n\pi|\frac\pi4+k\pi",
    r"n=3k \text{ for } k\in\mathbb N|3k",
    r"f(x)=2x|f(t)=2t|2x",
    r"x \equiv 3 \pmod 7|3 \pmod 7|x ≡ 3 (mod 7)|3 \mod 7|10 \pmod 7",
    r"6:8|3:4|\frac34|3 \text{ to } 4",
    r"12 345|12345|12,345",
    r"0.333...|1/3",
    r"0.\dot1 2\dot3|0.\overline{123}",
    r"33 1/3%|1/3",
    r"\lg 100|2",
    r"{n \choose 2}|\binom n2",
    r"\begin{cases}x=1\\y=2\end{cases}|(1,2)",
    r"\text{no solution}|\emptyset|\text{no solutions}",
    r"\text{all real numbers}|\mathbb R",
    r"y=-2x|2x+y=0",
    r"-2+7\mathrm{i}|-2+7i",
    r"2\text{e}^3|2e^3",
    r"\text{(C) Plane}|C",
    r"aₙ|a_n",
    r"10⁻³|0.001",
    r"4.123105625617661|4.12310562561766|\sqrt{17}",
    r"0.0833333333333333|1/12",
    r"x=3orx=4|x=3 or x=4|(3)or(4)|3, 4",
    r"F_n = \sum_{k=0}^{n-1} F_k F_{n-k-1}|\sum_{k=0}^{n-1} F_{n-1-k} F_k",
    r"a_{n+1} - 2a_n|-2a_{n} + a_{1+n}",
    r"14 {, }916|14{,}916|14916",
]


@pytest.mark.parametrize("family", ALIKE)
def test_alike_in_pairs_and_together(family: str) -> None:
    spellings = [Answer(text) for text in family.split("|") if family.count("|") < 8] if "{x|" not in family else []
    spellings = spellings or [Answer(text) for text in (r"\{x|-2\leq x<1\}", *family.split("|")[2:])]
    for a, b in combinations(spellings, 2):
        assert cluster([a, b]).ids == (0, 0), (a, b)
    assert set(cluster(spellings).ids) == {0}


@pytest.mark.parametrize("sides", [r"{0}\leq|z|<{1}", "{1}>|z| \\ge {0}"])
def test_an_absolute_value_between_two_bounds(sides: str) -> None:
    for low, high in (("1", r"\frac32"), (r"\sqrt2", "2"), ("0.5", "3")):
        union = rf"(-{high}, -{low}] \cup [{low}, {high})"
        assert same(Answer(sides.format(low, high)), Answer(union))
        assert same(Answer(sides.format(low, high)), Answer(rf"z \in {union}"))
        assert not same(Answer(sides.format(low, high)), Answer(f"[{low}, {high})"))


ORDERED = [
    ["1<x<2", "(1,2)", "x^2-3x+2<0", "(0,7)"],
    ["0<x<2", "|x-1|<1", "x^2<2x", "x(2-x)>0", "(0,2)"],
    ["x>5", r"(5,\infty)", "2x>10", "y>5", "5<x"],
    [r"\{1,2\}", "x=1,2", "x=1, x=2", "1, 2", "x^2-3x+2=0"],
    ["2x+y=0", "y=-2x", "-2x", "4x+2y=0", "x=5"],
    ["x=5", "y=5", "5", "5.0", "n=5"],
    [r"50\%", "50", "0.5", r"\frac12", "5"],
    ["1011_2", "1011", "11", "1011_3", "11.0"],
    ["(B) 5", "B", "5", "(C) 5", "(B) 6"],
]


@pytest.mark.parametrize("texts", ORDERED, ids=lambda texts: texts[0])
def test_order_never_matters(texts: list[str]) -> None:
    """All orders of every triple, and shuffles of all, some of them more than once."""
    rng = random.Random(0)
    groups = list(combinations(texts, 3)) + [texts + rng.choices(texts, k=3) for _ in range(5)]
    for group in groups:
        expected = partition(group)
        for order in list(permutations(group))[:24] if len(group) == 3 else [rng.sample(group, len(group))] * 3:
            assert partition(order) == expected, order


def partition(group: list[str]) -> set[frozenset[str]]:
    ids = cluster([Answer(text) for text in group]).ids
    return {frozenset(text for text, i in zip(group, ids, strict=True) if i == j) for j in ids}


def test_a_key_has_one_text() -> None:
    """What a symbolic comparison is asked about depends on what was read, not on how it was spelled."""
    for family in (["1<x<2", "(1,2)", "x>1, x<2"], ["x^2<2x", "x(2-x)>0"], [r"\frac12\pi", r"\pi/2", r"0.5\pi"]):
        assert len({key(Answer(text)) for text in family}) == len({read(text).text for text in family}) == 1
    assert equal([(read("1<x<2").text, read("x^2-3x+2<0").text)]) == [True]


def test_a_truth_follows_its_own_form() -> None:
    """Where a ballot has both 50 and a half, a truth of 50 % is the half."""
    ballot = vote([Answer(text) for text in ("50", "50", r"50\%", "0.5")])
    assert ballot.counts == (2, 2)
    assert classes_of([ballot] * 3, [Answer(r"50.0\%"), Answer("50.0"), Answer("1/2")]) == [1, 0, 1]
    assert classes_of([vote([Answer("50")])], [Answer(r"50\%")]) == [0]


def golds(folder: Path) -> list[str]:
    found: list[str] = []
    for file in ("AIME-TTT.json", "MATH-TTT.json", "GSM8K-test-300.json"):
        found += [str(row["answer"]).rpartition("####")[2].strip() for row in json.loads((folder / file).read_text())]
    return found


def wrong(text: str) -> list[str]:
    """Plausible wrong answers: other digits, 10 and 100 times, another sign, the inverse, another letter, swapped."""
    found = [f"-({text})", f"10({text})", f"100({text})", f"({text})+1", f"({text})-1", rf"\frac{{1}}{{{text}}}"]
    if text.startswith(("(", "[")) and text.count(",") == 1 and text[-1] in ")]":
        first, second = text[1:-1].split(",")
        found += [f"{text[0]}{second},{first}{text[-1]}"]
    found = found if not set(text) & set(",=<>:") and "text" not in text and "begin" not in text else found[6:]
    digits = [i for i, character in enumerate(text) if character.isdigit()]
    found += [f"{text[:i]}{(int(text[i]) + by) % 10}{text[i + 1 :]}" for i in digits for by in range(1, 10)]
    letters = [i for i, c in enumerate(text) if c in "xyabn" and not (text[:i] + text[i + 1 : i + 2])[-2:].isalpha()]
    return found + [f"{text[:i]}{'m'}{text[i + 1 :]}" for i in letters if "\\" not in text]


@pytest.mark.slow
def test_no_plausible_wrong_answer_joins_its_gold(ttrl_data: Path) -> None:
    pairs = [(gold, text) for gold in golds(ttrl_data) for text in wrong(gold)]
    assert len(pairs) > 10_000
    pairs = random.Random(0).sample(pairs, 10_000)
    merged = [pair for pair in pairs if same(*map(Answer, pair)) and not _by_value(*pair)]
    assert merged == []


def _by_value(gold: str, text: str) -> bool:
    """Whether the change is none: 0 has no sign, 1 is its own inverse."""
    if gold == r"3 \pm 2 \sqrt{2}" and text.startswith(r"\frac"):
        return True  # each of the two is the inverse of the other
    values = [read(side).parts[0].constant() if read(side).shape == "number" else None for side in (gold, text)]
    return values[0] is not None and values[0] == values[1]

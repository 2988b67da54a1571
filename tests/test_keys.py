r"""Hand-worked families of spellings, what must stay apart, and a slow twin of the arithmetic of keys."""

import math
import random
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations, product

import pytest

from ttrl_jax.reward.equivalence import classes, key
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.formula import read_formula
from ttrl_jax.reward.keys import read

# One family a row: what it is about, then spellings of one answer. No answer of a row is one of another row.
FAMILIES = [
    ("an integer", r"025|25|25.0|+25|25.|$25$|\(25\)|{25}|\text{25}|\boxed{25}|5^2|100/4|25 \quad|\,25|２５"),
    ("a number with a name", r"x=7|x = 7.|7 = x|f(2)=7|AB = 7|P(A)=7|\text{Area} = 7|f'(0) = 7|7"),
    ("an angle", r"40^\circ|40^{\circ}|40°|40 degrees|\angle ABC = 40^\circ|m\angle A=40|40\text{ degrees}|40"),
    ("units", r"9 \text{ cm}|9\,\text{cm}^2|9\mbox{ inches}^2|9 cm|9 apples|9\text{ km/h}|9 \text{ m/s}^2|\$9|9"),
    ("thousands", r"1{,}234|1,234|1234|1\,234|1,\!234|\$1,234.00|1,234 \text{ dollars}|1234.0"),
    ("a million", r"5 million|5,000,000|5 \text{ million dollars}|5 \times 10^6|5e6|5000000"),
    ("a half", r"\dfrac12|\frac{1}{2}|1/2|0.5|.5|\tfrac12|\frac 12|\cfrac{1}{2}|2^{-1}|\frac{5}{10}|½"),
    ("lengths", r"\overline{AC} = 18|AC=18|18 \textnormal{ miles}|18"),
    ("groups of named values", r"p=5,q=2; p=7,q=3|(5,2),(7,3)"),
    ("a remainder, which is not read", r"4 \pmod{7}|4 \pmod 7"),
    ("a chain", r"y = 3+5 = 8.0|\frac{16}{2} = 8|y = 8|8 \approx 8.1"),
    ("a chain that slips", r"x = 9+9+1 = 18 = 19|x = 2 \cdot 9 = 19|x = a + b = 19|x = \sum_k k = 19|x = 19|19"),
    ("a decimal after its fraction", r"x = \frac57 = 0.714|\frac57 = 0.71|x = \frac57 \approx 0.7|x = 5/7|5/7"),
    ("a decimal after its root", r"x = \sqrt7 = 2.6457|\sqrt7 = 2.65|\sqrt{7}"),
    ("roots beside one another", r"x_1 = 17 \quad x_2 = 23|x_{1} = 17, \qquad x_{2} = 23|x_1=17,\quadx_2=23|17, 23"),
    ("doubled back-slashes", r"\\frac{5}{11}|x = \\dfrac{5}{11}|5/11"),
    ("mixed number", r"3\frac12|3 \frac{1}{2}|3 1/2|7/2|3.5|x=3\frac12|3\frac{1}{2}\text{ hours}|3 + \frac12"),
    ("negative mixed", r"-3\frac12|-3 1/2|-7/2|-(3.5)|\frac{-7}{2}|-\frac72"),
    ("whole times improper fraction", r"3\frac52|\frac{15}{2}|3 \cdot \frac{5}{2}|7.5"),
    ("powers of ten", r"1.5e3|1500|1.5 \times 10^3|1.5 \cdot 10^{3}|1,500"),
    ("repeating decimal", r"0.\overline{3}|\frac13|0.\bar{3}|1/3"),
    ("later repetition", r"0.1\overline{6}|\frac16"),
    ("a root", r"2\sqrt{3}|2 \cdot \sqrt 3|2\sqrt3|\sqrt{12}|2*sqrt(3)|\frac{6}{\sqrt{3}}|2√3|2\sqrt{3}\text{ cm}"),
    ("a cube root", r"2\sqrt[3]{2}|\sqrt[3]{16}|2 \cdot 2^{1/3}|-\sqrt[3]{-16}"),
    ("pi", r"\pi|π|pi|\frac{2\pi}{2}|\pi \text{ cm}"),
    ("a multiple of pi", r"\frac{3\pi}{2}|1.5\pi|\frac32 \pi|3\pi/2|\frac{3}{2}π"),
    ("complex", r"3+4i|4i+3|3 + 4 \cdot i|3+2\sqrt{-4}"),
    ("linear", r"2x+3|3+2x|y=2x+3|y = 2 x + 3|f(x)=2x+3|2(x+1)+1|2\cdot x+3"),
    ("factored", r"(x+1)(x-2)|x^2-x-2|(x-2)(x+1)|-2 - x + x^{2}|f(x) = (x - 2) (x + 1)"),
    ("a fraction with a variable", r"\frac{11+9a}{20}|\frac{9a+11}{20}|\frac{11}{20}+\frac{9a}{20}|(9a+11)/20"),
    ("a denominator", r"\frac{1}{2x+2}|\frac{1}{2(x+1)}|\frac{0.5}{1+x}|(2x+2)^{-1}"),
    ("a long power", r"x^{10}|x^10|x^5 x^5|(x^5)^2|x⁵x⁵"),
    ("a function", r"\cot x|\cot(x)|\cot{x}|y = \cot x"),
    ("a square of a function", r"\sin^2 x|(\sin x)^2|\sin(x)^2"),
    ("an exponential", r"e^{2x}|e^{x + x}|\exp(2x)"),
    ("binomial and factorial", r"\binom{5}{2}|10|\frac{5!}{3! \cdot 2!}"),
    ("columns", r"\begin{pmatrix}3\\2\end{pmatrix}|]3,2[|(3,2)|P(3,2)|3\mathbf{i}+2\mathbf{j}|\langle 3,2 \rangle"),
    ("a point", r"(1,2)|(1, 2)|\left(1,2\right)|(x,y)=(1,2)|x=1, y=2|y=2, x=1|(1.0, \frac{4}{2})|\langle 1, 2 \rangle"),
    ("a set", r"\{1,2\}|\{2, 1\}|1, 2|2,1|1 \text{ or } 2|1 and 2|x=1,2|x = 1, x = 2|x=1 \text{ or } x=2"),
    ("plus or minus", r"4 \pm \sqrt{5}|4+\sqrt5, 4-\sqrt5|x = 4 \pm \sqrt 5|\{4 \mp \sqrt{5}\}"),
    ("plus or minus in a set", r"\{1\pm\sqrt{5},-2\}|-2, 1+\sqrt5, 1-\sqrt5"),
    ("points", r"(1,2), (3,4)|\{(3,4),(1,2)\}|(3,4) \text{ and } (1,2)"),
    ("an open ray", r"x>5|5<x|(5,\infty)|x \in (5, \infty)|x \gt 5|(5,+\infty)"),
    ("a closed ray", r"x\ge 5|[5,\infty)|x \geq 5|5 \le x|x≥5|\left[5, \infty\right)"),
    ("an interval", r"-2\le x \le 7|[-2,7]|x \in [-2,7]|7 \ge x \ge -2|\left[-2, 7\right]"),
    ("a union", r"(-\infty,2)\cup(3,\infty)|(3,\infty) \cup (-\infty,2)|x<2 \text{ or } x>3"),
    ("the reals", r"\mathbb{R}|(-\infty, \infty)|x \in \mathbb R"),
    ("one value twice", r"\frac{1}{9} \text{ or } 0.\overline{1}|1/9|\{1/9\}"),
    ("letters", r"\text{A and C}|A, C|C,A|(A), (C)"),
    ("all but one", r"x \ne 3|x \neq 3|(-\infty,3)\cup(3,\infty)"),
    ("a region", r"x^2+y^2<4|4>x^2+y^2|x^2+y^2-4<0|2x^2 + 2y^2 < 8"),
    ("a line", r"2x+3y=4|4=2x+3y|2x+3y-4=0|4x+6y=8|3y+2x=4"),
    ("a matrix", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}|\begin{bmatrix} 1 & 2 \\ 3 & 4 \\ \end{bmatrix}"),
    ("an array", r"\left(\begin{array}{cc}1&0\\0&2\end{array}\right)|\begin{pmatrix}1&0\\0&2\end{pmatrix}"),
    ("nothing in it", r"\emptyset|\{\}|\varnothing|∅"),
    ("a ratio", r"3:4|3 : 4"),
    ("a time", r"6:00 PM|6:00 \text{ p.m.}|6 pm|6\text{ PM}|\text{6:00 p.m.}"),
    ("a word", r"\text{east}|East|east.|the east|\textbf{East}|\text{East}."),
    ("several words", r"\text{Alice and Bob}|Bob, Alice|\text{Alice}, \text{Bob}"),
    ("no", r"no|No|\text{No}"),
    ("a letter", r"B|(B)|\text{B}|B.|\text{(B)}|\textbf{(B)}|(B).|\mathrm{B}"),
    ("base two", r"1011_2|1011_{2}|1011_{\text{two}}|1011 \text{ base } 2|01011_2|1011 \text{ (base 2)}|1011 base 2"),
    ("base ten is no base", r"31_{10}|31"),
]  # fmt: skip
FAMILIES = [(name, spellings.split("|")) for name, spellings in FAMILIES]

# Near misses: pairs that a careless reader would merge.
APART = [
    ("1/3", "0.333", "equality is exact"),
    (r"x = \frac13 = 0.333", "0.333", "a decimal after the exact value rounds it"),
    ("x = 2 = 2.5", "2", "a decimal that is no rounding is another value"),
    ("1 + 1 = 3", "2 + 2 = 5", "sides that contradict each other are no equation"),
    ("1 + 1 = 3", "3", "without a name they say nothing"),
    ("x = y = 3", "y = 3", "two unknowns"),
    ("f(x) = x^2 - 1 = 0", "0", "an equation to be solved"),
    ("x = 1 = a", "1", "a chain that ends in a letter"),
    ("(1,2)", "[1,2]", "open and closed"),
    ("(1,2]", "[1,2)", "open and closed, at either end"),
    ("x>5", r"x\ge5", "strict and not"),
    ("(1,2)", "(2,1)", "a point has an order"),
    ("1,2", "(1,2)", "a list is no point"),
    ("1,2", "1,1,2", "a list has repetitions"),
    ("x=1,y=2", "x=2,y=1", "names have values"),
    ("1011_2", "11", "an answer in a base is not the number in base ten"),
    ("1011_2", "1011_3", "another base"),
    ("2x+3", "2y+3", "another variable"),
    ("R^2", "r^2", "the case of a variable"),
    ("x_1", "x_2", "another subscript"),
    ("x^2=4", "2", "an equation that is not solved"),
    ("3 x", "3", "a variable is no unit"),
    (r"5\text{ million}", "5", "a million is no unit"),
    (r"10 \text{ a.m.}", r"10 \text{ p.m.}", "half a day apart"),
    ("10:30", "1/3", "a time is no fraction"),
    (r"\text{even}", r"\text{never}", "letters of words are no variables"),
    ("east", "seat", "the order of letters in words"),
    ("A", "a", "the case of a letter"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", "rows and columns"),
    (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "a determinant is a number"),
    (r"\sqrt{2}", "1.41421356", "equality is exact"),
    (r"\frac{1}{x}+1", r"\frac{1}{x+1}", "where the fraction ends"),
    ("-2^2", "(-2)^2", "the sign is outside of the power"),
    ("1-(2-3)", "1-2-3", "a minus before brackets"),
    ("12 3", "123", "a space between digits"),
    ("1st", "1", "an ordinal"),
]
TEXTS = [text for _, spellings in FAMILIES for text in spellings] + [text for a, b, _ in APART for text in (a, b)]


@pytest.mark.parametrize(("name", "spellings"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_family(name: str, spellings: list[str]) -> None:
    assert {text: key(Answer(text)) for text in spellings} == dict.fromkeys(spellings, key(Answer(spellings[0])))
    assert len(set(spellings)) > 1


def test_families_stay_apart() -> None:
    keys = [key(Answer(spellings[0])) for _, spellings in FAMILIES]
    assert len(set(keys)) == len(FAMILIES)


@pytest.mark.parametrize(("a", "b", "why"), APART, ids=[why for _, _, why in APART])
def test_apart(a: str, b: str, why: str) -> None:
    assert key(Answer(a)) != key(Answer(b))
    assert classes([Answer(a), Answer(b)]) == [0, 1]


def test_reflexive_and_symmetric_on_all_pairs() -> None:
    for a, b in combinations(TEXTS, 2):
        assert classes([Answer(a), Answer(b)]) == classes([Answer(b), Answer(a)]), (a, b)
        assert classes([Answer(a), Answer(b), Answer(a)])[2] == 0


def test_classes_of_all_texts_are_those_of_their_pairs() -> None:
    """Transitive: one big question has the classes that pairs of its answers have."""
    ids = classes([Answer(text) for text in TEXTS])
    for (a, i), (b, j) in combinations(zip(TEXTS, ids, strict=True), 2):
        assert (classes([Answer(a), Answer(b)]) == [0, 0]) is (i == j), (a, b)


Tree = tuple[str, Callable[[Fraction, Fraction], Fraction]]


def grow(rng: random.Random, depth: int) -> Tree:
    """A random polynomial in x and y: its text, and the same as a Python function."""
    if depth == 0:
        n = rng.randint(0, 3)
        return rng.choice([("x", lambda x, y: x), ("y", lambda x, y: y), (str(n), lambda x, y: Fraction(n))])
    (a, f), (b, g) = grow(rng, depth - 1), grow(rng, depth - 1)
    return rng.choice(
        [
            (f"{a} + {b}", lambda x, y: f(x, y) + g(x, y)),
            (f"{a} - ({b})", lambda x, y: f(x, y) - g(x, y)),
            (rf"({a}) \cdot ({b})", lambda x, y: f(x, y) * g(x, y)),
            (f"({a})({b})", lambda x, y: f(x, y) * g(x, y)),
            (f"({a})^2", lambda x, y: f(x, y) ** 2),
            (rf"\frac{{{a}}}{{2}}", lambda x, y: f(x, y) / 2),
            (f"-({a})", lambda x, y: -f(x, y)),
        ]
    )


def test_polynomials_against_a_slow_twin() -> None:
    """Of degree 4 at most: equal exactly when they agree at 5 x 5 points."""
    rng = random.Random(0)
    trees = [grow(rng, depth) for depth in (1, 2, 2) for _ in range(250)]
    grid = [(Fraction(x), Fraction(y)) for x, y in product(range(-2, 3), repeat=2)]
    values = [tuple(function(*point) for point in grid) for _, function in trees]
    keys = [key(Answer(f"({text})")) for text, _ in trees]
    pairs = combinations(zip(trees, keys, values, strict=True), 2)
    wrong = [(a[0][0], b[0][0]) for a, b in pairs if (a[1] == b[1]) != (a[2] == b[2])]
    assert wrong == []
    assert 100 < len(set(values)) < 700  # some are equal, some are not


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\frac{3\sqrt{3}}{4}", 3 * math.sqrt(3) / 4),
        (r"\sin 30^\circ", 0.5),
        (r"\sin 2\pi/3", 0.0),  # the sine of two pi, by three
        (r"\log_2 8 + \ln e", 4.0),
        (r"|2 - 5|!", 6.0),
        (r"2^{3^2}", 512.0),
        (r"-2^2 + 3!", 2.0),
        (r"\sqrt[3]{-8} - 8^{2/3}", -6.0),
        (r"\sin^{-1} 1", math.pi / 2),
        (r"1/2\pi", math.pi / 2),  # from left to right
        (r"2^2\frac12 + 1\frac12", 3.5),
        (r"\tan^2 \frac{\pi}{3}", 3.0),
    ],
)
def test_values_by_hand(text: str, value: float) -> None:
    assert read_formula(text).values == pytest.approx([value, value], abs=1e-12)


HOSTILE = [
    "(a+b+c+d+e+f+g+h)^{16}",
    "(a+1)(b+1)(c+1)(d+1)(e+1)(f+1)(g+1)(h+1)(k+1)",
    "(9^{999}+a)^{7}" * 40,
    "200!" * 200,
    "9^" * 400 + "9",
    "9**9**9**9",
    r"\sqrt{" * 120 + "2" + "}" * 120,
    r"\frac{1}{" * 90 + "x" + "}" * 90,
    "(" * 450 + "1" + ")" * 450,
    "((a+9^{300})(b+9^{300})(c+9^{300})(d+9^{300}))^{2}" * 15,
    "1," * 450 + "1",
    "1,234," * 150,
    r"\pm" * 300 + "1",
    r"1 \pm" * 150 + "1",
    "a" + "!" * 900 + "5",
    "a " * 490 + "5",
    "5 " + "cm/" * 300 + "5",
    r"5\text{ aaa}" * 80,
    "x_" * 450,
    r"\text{" * 150 + "}" * 100,
    r"\begin{pmatrix}" + "1&" * 400 + r"1\end{pmatrix}",
    "=" * 900,
    "a=" * 450,
    "|" * 900,
    "{" * 900,
    r"\{" * 450,
    "__import__('os').mkdir('x')",
    "\x00\ud800",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_hostile_text_is_read_in_no_time(text: str) -> None:
    start = time.process_time()
    form = read(text[:1000])
    assert time.process_time() - start < 1
    assert form.key == read(text[:1000]).key != read(text[:1000] + "7").key

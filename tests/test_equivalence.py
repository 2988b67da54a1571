"""Numbers against a slow twin, and keys that stay short, apart and quick on any text."""

import json
import random
import subprocess
import sys
import time
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest

from ttrl_jax.reward.equivalence import MAX_PAIRS, Clusters, classes, classes_by, cluster, key, same
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.symbolic import question

ROWS = [json.loads(line) for line in (Path(__file__).parent / "golden/answers.jsonl").read_text().splitlines()]
PAIRS = [row for row in ROWS if row["kind"] in ("equal", "different")][::20]  # all of them: test_golden_answers.py

MB = 1_000_000
HOSTILE = [
    " ",
    "1 ",
    ", ",
    "\\",
    r"\!",
    r",\!",
    r"\left",
    r"\text{",
    r"\frac",
    r"\frac{1}{",
    "{,}000",
    ",000",
    "9",
    "9.",
    "1/",
    "-",
    ".",
    "$",
    "e9",
    "(",
    "\u2212",
    "\u0663",  # a digit, but not one of 0-9
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("012", "n:12"),
        ("142.0", "n:142"),
        ("-0", "n:0"),
        (r"-\frac{2}{-4}", "n:1/2"),
        ("1.5e-3", "n:3/2000"),
        (r"\$1,234.50.", "n:2469/2"),
        (r"\left( 3, \dfrac{\pi}{2} \right)", r"()2:n:3;e:\frac{1}{2} \cdot \pi"),
        (r"\text{ \textbf{Evelyn} }.", "w:evelyn"),
        ("1 2", "s:1 2"),
        (r"50\%", "n:1/2"),
        (r"\,", ""),
        (r"5 \pmod 7", "m:5 mod 7"),
    ],
)
def test_key_by_hand(text: str, expected: str) -> None:
    assert key(Answer(text)) == expected


def test_classes_count_by_first_appearance_and_none_stays_none() -> None:
    texts = ["b", None, "012", "a", "12", r"\,", "b", "12.0", "$", ""]
    assert classes([None if t is None else Answer(t) for t in texts]) == [0, None, 1, 2, 1, None, 0, 1, None, None]
    assert classes([]) == []


def test_numbers_against_a_slow_twin() -> None:
    """Many ways to write a number: same class exactly when Python's Fraction says that they are equal."""
    values = [Fraction(a, b) for a, b in product([-1250, -3, 0, 3, 7, 1250, 12345], [1, 2, 8, 1000])]
    written = []
    for v in values:
        a, b = v.numerator, v.denominator
        texts = [
            f"{a}/{b}",
            rf"\frac{{{a}}}{{{b}}}",
            rf"$\dfrac{{{a}}}{{{b}}}$.",
            rf"{float(v):.4f}",
            f"{2 * a}/{2 * b}",
        ]
        texts += [f"{float(v) * 100:.2f}e-2", rf"{float(v):.4f} \times 10^{{0}}"]
        texts += [f"{a}", f"{a:,}", f"{a:,}".replace(",", "{,}"), f"{a:08d}", f"{a}.00"] if b == 1 else []
        written += [(v, text) for text in texts]
    ids = classes([Answer(text) for _, text in written])
    of_value: dict[Fraction, int] = {}
    for v, _ in written:
        of_value.setdefault(v, len(of_value))
    wrong = [(text, v) for (v, text), i in zip(written, ids, strict=True) if i != of_value[v]]
    assert wrong == []


def test_classes_do_not_depend_on_the_order_of_the_answers() -> None:
    texts = [row[side] for row in PAIRS for side in "ab"]
    before = classes([Answer(text) for text in texts])
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    after = classes([Answer(texts[i]) for i in order])
    # The same partition: class numbers of the two correspond one to one.
    names = set(zip([before[i] for i in order], after, strict=True))
    assert len(names) == len({b for b, _ in names}) == len({a for _, a in names}) == len(set(before))


# Keys cannot tell; what a symbolic comparison says.
SYMBOLIC = [
    (r"\frac{1}{1+\sqrt{2}}", r"\sqrt{2}-1", True),
    (r"\frac{x^2-1}{x-1}", "x + 1", True),
    (r"\sqrt{7+4\sqrt{3}}", r"2+\sqrt{3}", True),
    (r"y = \sin^2 x + \cos^2 x", "1", True),
    (r"(\sin \frac{\pi}{6}, 2)", r"(\frac12, 2)", True),
    (r"\left\{2, \frac{1}{1+\sqrt{2}}\right\}", r"\sqrt{2}-1, 2", True),
    (r"\sin 30^\circ", r"\frac12", True),
    (r"\lfloor \sqrt{5} \rfloor", "2", True),
    (r"(0,1) \cup [1,2)", "(0,2)", True),
    (r"(0,1) \cup (1,2)", "(0,2)", False),
    ("x^2-3x+2 < 0", "1 < x < 2", True),
    ("|x| < 3", "(-3,3)", True),
    (r"\lfloor \sqrt{5} \rfloor", "3", False),
    (r"x(y+1)=x", "xy=1", False),
]


@pytest.mark.parametrize(("a", "b", "equal"), SYMBOLIC)
def test_what_keys_leave_open(a: str, b: str, equal: bool) -> None:
    first, second = Answer(a), Answer(b)
    assert key(first) != key(second)
    expected = Clusters((0, 0) if equal else (0, 1), 0)
    assert cluster([first, second]) == cluster([second, first]) == expected
    assert same(first, second) is same(second, first) is equal


def test_sameness_is_transitive_over_keys_and_symbolic_comparisons() -> None:
    texts = ["7", r"\frac{1}{\sqrt2-1}", r"\sqrt2+1", r"1+\frac{2}{\sqrt2}", None, r"x = \frac{1}{\sqrt{2}-1}.", "7.0"]
    assert classes([None if text is None else Answer(text) for text in texts]) == [0, 1, 1, 1, None, 1, 0]


def test_answers_with_one_key_are_the_same_and_empty_ones_are_not() -> None:
    assert same(Answer("1/2"), Answer(r"\frac12")) and not same(Answer("1/2"), Answer("3"))
    assert not same(Answer(""), Answer("")) and not same(Answer(r"\,"), Answer("4"))


def test_classes_by_another_notion_of_sameness() -> None:
    """Hand-worked: by length. Every answer is compared with the first of each class alone."""
    asked = []

    def as_long(one: Answer, other: Answer) -> bool:
        asked.append((one.text, other.text))
        return len(one.text) == len(other.text)

    group = [Answer("aa"), None, Answer("b"), Answer("cc"), Answer("d")]
    assert classes_by(as_long)(group) == Clusters((0, None, 1, 0, 1), 0)
    assert asked == [("aa", "b"), ("aa", "cc"), ("aa", "d"), ("b", "d")]


def test_at_most_so_many_pairs_are_compared_and_those_that_agree_in_value_first() -> None:
    unread = [Answer(rf"\star_{{{n}}}") for n in range(20)]  # 190 pairs, and 40 with the other two
    same = [Answer(r"\frac{1}{1+\sqrt{2}}"), Answer(r"\sqrt{2}-1")]
    with question() as asked:
        found = cluster([*unread, *same])
    assert found.ids == (*range(20), 20, 20)
    assert found.undecided == 230 and found.undecided > MAX_PAIRS
    # One of the pairs that were compared is equal; of those that were not, as many are written down.
    noted = {(pair.first, pair.second) for pair in asked.undecided}
    assert len(noted) == len(asked.undecided) == 2 * MAX_PAIRS - 1


def test_numbers_start_no_worker() -> None:
    """Whatever a model writes that has only learnt to add: in a fresh process, which no other test has used."""
    script = """
import sys
from ttrl_jax.reward import symbolic
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.vote import vote
texts = ["85", "085", "8 5", "85.", "8+", "+85", "85 + 0", "3 7 4 8 = 85", "=85", "8=5"]
texts += ["5/0", "..", "1e9999", "37 + 48 = 85"]
ballot = vote([Answer(text) for text in texts])
assert ballot.undecided == 0 and ballot.counts[0] == 7, ballot
assert symbolic._COMPARER.processes() == []
assert not {"jax", "sympy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("piece", HOSTILE)
def test_linear_time_on_hostile_megabytes(piece: str) -> None:
    filling = piece * (MB // len(piece))
    for text in (filling, rf"\text{{1{filling}}}", f",{filling}x."):
        start = time.process_time()
        name = key(Answer(text))
        assert time.process_time() - start < 5
        assert len(name) <= 2 + 256


def test_linear_time_on_deeply_nested_text() -> None:
    depth = MB // len(r"\text{}")
    start = time.process_time()
    assert key(Answer(r"\text{" * depth + "7" + "}" * depth)).startswith("s:sha256:")
    assert time.process_time() - start < 5


@pytest.mark.parametrize("kind", ["x", "7"])
def test_long_answers_stay_apart(kind: str) -> None:
    long = kind * 100_000
    assert classes([Answer(t) for t in (long, long + kind, f" {long}. ", long[:-1] + "8")]) == [0, 1, 0, 2]
    assert len(key(Answer(long))) < 100


def test_numbers_have_up_to_a_thousand_digits_and_exponents_up_to_a_thousand() -> None:
    zeros = "0" * 998
    assert classes([Answer(text) for text in ("1e1000", "10e999", f"1{zeros}e2", f"01{zeros}e2")]) == [0, 0, 0, 1]
    assert key(Answer("1e1001")) == "s:1e1001"
    assert key(Answer("1e-1001")) == "s:1e-1001"


def test_broken_characters_are_kept_apart() -> None:
    """Lone surrogates come out of byte-level tokenizers; also in keys long enough for a digest."""
    texts = ["\ud800", "\ud801", "\ud800" * 300, "\ud801" * 300]
    assert classes([Answer(text) for text in texts]) == [0, 1, 2, 3]

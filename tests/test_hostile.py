"""Semantics: whatever a model writes, nothing of it is run, nothing fails, and the votes beside it count as ever."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ttrl_jax.reward.admit import admit
from ttrl_jax.reward.extract import extract
from ttrl_jax.reward.symbolic import equal
from ttrl_jax.reward.vote import vote

GROUP = 32  # hostile votes in a group
SANE = [r"\boxed{\frac{8675309}{2}}", r"So it is \boxed{4337654.5}.", r"\boxed{8675309/2}", r"\boxed{8,675,311}"]
SANE_CLASSES = [0, 0, 0, 1]
STRATEGIES = [("boxed",), ("boxed", "last_number")]  # which read the sane votes
OTHER_STRATEGIES = [("choice", "last_number"), ("last_number",)]

# Each would leave a file if it were run: CANARY is a path, canary a name in the working directory.
PYTHON = [
    "__import__('os').system('touch CANARY')",
    "open('CANARY','w')",
    "open('canary', 'w').write('1')",
    "exec(\"open('CANARY','w')\")",
    "eval(compile('open(\"CANARY\",\"w\")', 's', 'exec'))",
    "().__class__.__bases__[0].__subclasses__()",
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0](['touch','CANARY'])",
    "(lambda: open('CANARY','w'))()",
    "x.__class__.__init__.__globals__['__builtins__']['open']('CANARY','w')",
    "Symbol('x').__class__.__mro__[-1].__subclasses__()",
    'sympify(\'open("CANARY","w")\')',
    'lambdify([], \'__import__("os").system("touch CANARY")\')()',
    "import os; os.system('touch CANARY')",
    "from pathlib import Path; Path('CANARY').touch()",
    'f\'{open("CANARY", "w")}\'',
    "{0.__class__.__init__.__globals__}",
    "%(open)s %s %n %d",
    "print(1)\nopen('CANARY','w')",
    "1 if open('CANARY','w') else 2",
    "@open\ndef CANARY(): pass",
    "9**9**9",
    "9**9**9**9**9",
    "'a'*10**10",
    "[0]*10**11",
    "while True: pass",
    "exit()",
    "raise SystemExit",
    "assert False",
    "breakpoint()",
    "globals().clear()",
]
SHELL = [
    "$(touch CANARY)",
    "`touch CANARY`",
    "; touch CANARY ;",
    "| touch CANARY",
    "&& touch CANARY &&",
    "> CANARY",
    "1 > canary",
    "'; touch CANARY; '",
    '"; touch CANARY; "',
    "\n touch CANARY \n",
    "${IFS}touch${IFS}CANARY",
    "<(touch CANARY)",
    "%00; touch CANARY",
    "../../../../etc/passwd",
    "/dev/zero",
    "rm -rf /nonexistent",
    ":(){ :|:& };:",
]
OTHERS = [
    "cos\nsystem\n(S'touch CANARY'\ntR.",
    "!!python/object/apply:os.system ['touch CANARY']",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% include 'CANARY' %}",
    r"\write18{touch CANARY}",
    r'\input{|"touch CANARY"}',
    r"\immediate\openout1=CANARY",
    r"\def\x{\x\x}\x",
    r"\catcode`\{=12",
    r"\newcommand{\a}{\a}\a",
    r"\csname boxed\endcsname{1}",
    "<script>open('CANARY')</script>",
    "'; DROP TABLE votes; --",
    "true\ntrue\ntrue",
    "null",
    '"]\n["1", "1"]',
    "NaN",
    "Infinity",
    "-1e999",
    "1e999999999",
    "1e-999999999",
    "0x" + "f" * 300,
    "1_000_000",
    "None",
    "zoo",
    "nan",
    "oo",
    "I",
    "S(1)",
    "Rational(1,0)",
]
LATEX = [
    r"\int_{0}^{\infty} e^{-x^{x^{x}}} dx",
    r"\sum_{n=1}^{\infty} \frac{1}{n^{n^{n}}}",
    r"\prod_{p} (1-p^{-s})^{-1}",
    r"\lim_{x\to 0} \frac{\sin(1/x)}{x}",
    r"9^{9^{9}}",
    r"9^{9^{9^{9}}}",
    r"((((9^{99})^{99})^{99})^{99})^{99}",
    r"(((9^{999})^{999})^{999})^{999}",
    r"100000000!",
    r"((9!)!)!",
    r"9!!!!!!!!!!!!!!!!!!",
    r"\binom{1000000000}{500000000}",
    r"\frac{1}{0}",
    r"\frac{0}{0}",
    r"0^0",
    r"0^{-1}",
    r"\sqrt[0]{2}",
    r"\sqrt[-1]{0}",
    r"\log_1 5",
    r"\log 0",
    r"\tan 90^\circ",
    r"\frac{}{}",
    r"\frac",
    r"\sqrt",
    r"\sqrt{}",
    r"\left(\right.",
    r"\begin{pmatrix}",
    r"\begin{pmatrix}1&2\\3\end{pmatrix}",
    r"\begin{pmatrix}\end{pmatrix}",
    r"\end{pmatrix}",
    r"{}^{}_{}",
    r"x^{y^{z}}_{a_{b}}",
    r"\{1,2",
    r"(1,2",
    r"]1,2[",
    r"1,,2",
    r",",
    r"=",
    r"x=y=z=x",
    r"1<2>3<4",
    r"x<x",
    r"\{\{\{\}\}\}",
    r"\emptyset\cup\emptyset",
    r"\text{\text{\text{}}}",
    r"\boxed{\boxed{\boxed{}}}",
    r"\boxed",
    r"\boxed{",
    r"\\boxed{1}",
    r"\%",
    r"50\%\%\%",
    "1" + "\\%" * 100,
    "\\",
    "\\\\\\",
    "{",
    "}",
    "}{",
    "{" * 5_000,
    "}" * 5_000,
    "$" * 1_000,
    "-" * 5_000 + "1",
    "+-" * 2_000 + "1",
    r"\frac{" * 10_000 + "1" + "}{2}" * 10_000,
    r"\sqrt{" * 10_000 + "2" + "}" * 10_000,
    "(" * 10_000 + "1" + ")" * 10_000,
    "^{2" * 3_000 + "}" * 3_000,
    r"\text{" * 5_000 + "1" + "}" * 5_000,
    "1" * 1_000_000,
    "0." + "3" * 1_000_000,
    "1/" * 20_000 + "1",
    "1," * 20_000 + "1",
    ",000" * 20_000,
    " " * 200_000,
    r"\ " * 50_000,
    r"\left" * 20_000,
    "a" * 1_000_000,
    "x+" * 140 + "x",
]
UNICODE = [
    "\x00",
    "1\x002",
    "\x00\x01\x02\x1b[31m\x7f",
    "\u202e123",
    "\u200f\u200e1\u202a\u202c",
    "\u2066\u2067\u20681",
    "\ufeff1",
    "1\u200b2",
    "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001d7d9\U0001d7da",
    "\u0661\u0662\u0663",
    "\u0967\u0968",
    "\uff11\uff12",
    "\u00bd",
    "\u2163",
    "\u4e00\u4e8c",
    "\ud800",
    "\udfff\ud800",
    "e\u0301" * 100,
    "\u0300" * 500,
    "\u2028\u2029\x85\x0b\x0c",
    "\r\n1\r\n",
    "\u221a\u221a\u221a2",
    "\u00b2\u00b3\u00b9",
    "\u2212\u20121\u2013",
    "\u03c0\u03c0\u03c0",
    "\ufdfa",
    "\u0130\u0131",
    "\U0010ffff",
]
WRITTEN = PYTHON + SHELL + OTHERS + LATEX + UNICODE

# Where hostile text may stand in a response; in some places it is the answer, in others beside one.
PLACES = [
    "{0}",
    "\\boxed{{{0}}}",
    "\\boxed{{\\frac{{{0}}}{{2}}}}",
    "\\boxed{{2^{{{0}}}}}",
    "\\boxed{{\\text{{{0}}}}}",
    "\\boxed{{\\sqrt[{0}]{{2}}}}",
    "\\boxed{{x_{{{0}}}}}",
    "\\boxed{{({0}, 1)}}",
    "\\boxed{{x = {0}}}",
    "\\boxed{{1 {0}",
    "The answer is {0}",
    "Answer: ({0})",
    "{0} \\boxed{{",
    "<think>{0}</think> \\boxed{{{0}}}",
]

_CHARACTERS = "0123456789xyei+-*/^_=<>()[]{}|,.!:%&\\$ \n'\"\x00\u221a"


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path that hostile text tries to create; afterwards its folder, the working directory, must be empty."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "canary"
    assert list(tmp_path.iterdir()) == []


def formula(rng: random.Random, depth: int) -> str:
    """A formula that may well be admitted, so that the workers get something to do."""
    if depth == 0:
        return rng.choice(["x", "y", "i", "e", r"\pi", "0", "1", "2", "7.5", "999", r"\infty", "a_1", r"\theta"])
    a, b = formula(rng, depth - 1), formula(rng, rng.randrange(depth))
    shapes = (
        *(f"({a})+{b}", f"({a})({b})", rf"\frac{{{a}}}{{{b}}}", f"({a})^{{{b}}}", rf"\sqrt{{{a}}}", rf"\sin({a})"),
        *(f"({a},{b})", f"[{a},{b})", f"{a}={b}", f"{a}<{b}", f"{a},{b}", rf"\{{{a},{b}\}}", rf"{a}\cup {b}", f"|{a}|"),
        *(rf"\binom{{{a}}}{{{b}}}", f"{a}!", rf"\log_{{{a}}}({b})", rf"\lfloor {a}\rfloor", rf"{a}\pm {b}", f"{a}:{b}"),
        rf"\begin{{pmatrix}} {a} & {b} \\ {b} & {a} \end{{pmatrix}}",
    )
    return rng.choice(shapes)


def generated(number: int, seed: int) -> list[str]:
    """Hostile texts: pieces of the written ones cut, repeated and mixed, and formulas at random."""
    rng = random.Random(seed)
    short = [text for text in WRITTEN if len(text) < 500]
    texts = []
    for _ in range(number):
        match rng.randrange(5):
            case 0:
                text = "".join(rng.choices(short, k=rng.randint(2, 5)))
            case 1:
                text = rng.choice(short) * rng.randint(2, 40)
            case 2:
                one, other = rng.choices(short, k=2)
                text = one[: rng.randrange(len(one) + 1)] + other[rng.randrange(len(other)) :]
            case 3:
                text = "".join(rng.choices(_CHARACTERS, k=rng.randint(1, 60)))
            case _:
                text = formula(rng, rng.randint(1, 3))
        texts.append(text)
    return texts


def responses(texts: list[str], canary: Path, seed: int) -> list[str]:
    rng = random.Random(seed)
    texts = [text.replace("CANARY", str(canary)) for text in texts]
    return [rng.choice(PLACES).format(text) for text in texts]


def check_votes(hostile: list[str], strategies: tuple[str, ...]) -> None:
    """The sane votes keep their classes, and nothing hostile joins them, in front of them or behind them."""
    for group in ([*SANE, *hostile], [*hostile, *SANE]):
        answers = [extract(response, strategies=strategies, thinking=False) for response in group]
        ballot = vote(answers)
        found = ballot.classes[: len(SANE)] if group[0] == SANE[0] else ballot.classes[-len(SANE) :]
        first = found[0]
        assert [i == first for i in found] == [i == SANE_CLASSES[0] for i in SANE_CLASSES], strategies
        assert [ballot.counts[i] for i in (found[0], found[-1])] == [3, 1]


def test_there_are_enough_cases():
    assert len(set(WRITTEN)) == len(WRITTEN) >= 100
    assert len(set(generated(2_400, seed=0))) >= 2_000


@pytest.mark.parametrize("place", PLACES)
def test_written(place: str, canary: Path):
    # A text of a megabyte is long enough in two places.
    texts = [text for text in WRITTEN if len(text) < 100_000 or place in PLACES[:2]]
    hostile = [place.format(text.replace("CANARY", str(canary))) for text in texts]
    start = time.monotonic()
    for i in range(0, len(hostile), GROUP):
        check_votes(hostile[i : i + GROUP], STRATEGIES[i // GROUP % 2])
    for response in hostile:
        for strategies in OTHER_STRATEGIES:
            for thinking in (False, True):
                vote([extract(response, strategies=strategies, thinking=thinking)])
    assert time.monotonic() - start < 60


def test_generated(canary: Path):
    hostile = responses(generated(2_400, seed=0), canary, seed=1)
    start = time.monotonic()
    for i in range(0, len(hostile), GROUP):
        check_votes(hostile[i : i + GROUP], STRATEGIES[i // GROUP % 2])
    assert time.monotonic() - start < 60


def test_what_reaches_the_workers(canary: Path):
    """Straight to the computer algebra system, without keys in front of it: nothing equals a sane answer."""
    texts = [text.replace("CANARY", str(canary)) for text in WRITTEN + generated(2_400, seed=2)]
    admitted = [text for text in texts if admit(text) is not None]
    assert len(admitted) >= 100  # so that this is not about the admission alone
    start = time.monotonic()
    sane = r"\frac{8675309}{\sqrt{7}}"
    sample = random.Random(3).sample(admitted, 100)
    refused = [text for text in texts if admit(text) is None]
    results = equal([(text, sane) for text in refused + sample])
    assert True not in results
    assert set(results[: len(refused)]) <= {None, False}
    assert equal([(sane, r"\frac{8675309\sqrt{7}}{7}")]) == [True]
    assert time.monotonic() - start < 60

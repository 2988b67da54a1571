"""Semantics: which answers are equal to a computer algebra system, and that nothing it is given gets out of bounds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ttrl_jax.reward import symbolic
from ttrl_jax.reward.admit import MAX_CHARACTERS, admit, is_prose
from ttrl_jax.reward.symbolic import Comparer, Limits, Undecided, equal

ROOT = Path(__file__).parent.parent
# Admitted, of equal value, and beyond what sympy simplifies within minutes: an equation that it tries to solve.
STUCK = (r"\sin x=\cos x^{5}+x", r"\sin x+0=\cos x^{5}+x+x-x+1")
# Admitted, and takes gigabytes: the terms of a power of nine variables.
HOG = (
    "(a+b+c+d+f+g+h+k+l)^{30}-1",
    "((a+b+c+d+f+g+h+k+l)^{15}-1)((a+b+c+d+f+g+h+k+l)^{15}+1)+x-x",
)

EQUAL = [
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt3}", "a root taken out of the denominator"),
    (r"\sqrt{6+2\sqrt5}", r"1+\sqrt5", "a nested root"),
    (r"\cos\frac{\pi}{7}\cos\frac{2\pi}{7}\cos\frac{3\pi}{7}", r"\frac18", "known only by proof"),
    (r"\sin(\sqrt{2}+\sqrt{3}-\sqrt{5+2\sqrt{6}})", "0", "values that should be 0 come out as anything small"),
    ("x^2-1", "(x-1)(x+1)", "factors"),
    ("x**2-1", "(x-1)*(x+1)", "plain spellings"),
    (r"\frac{1}{x}-\frac1{x+1}", r"\frac{1}{x(x+1)}", "partial fractions"),
    (r"\sin^2 x+\cos^2 x", "1", "an identity"),
    ("2^{x}", r"e^{x\ln 2}", "a power as an exponential"),
    (r"\binom{n}{2}", r"\frac{n(n-1)}{2}", "a binomial written out"),
    ("ab", "ba", "a product commutes"),
    (r"\sqrt{x^2}", "|x|", "variables are real"),
    ("(1+i)^2", "2i", "the imaginary unit"),
    (r"e^{i\pi}", "-1", "likewise, in an exponent"),
    (r"50\%", r"\frac12", "a per cent is a hundredth"),
    (r"\tan 45^\circ", "1", "degrees inside a function are angles"),
    (r"90^\circ", "90", "degrees alone are not"),
    (r"137 \frac{1}{2}", r"\frac{275}{2}", "a mixed number"),
    ("10,\\!080", "10{,}080", "thousands commas"),
    ("1,2", "2,1", "a list without brackets has no order"),
    (r"\{1,2\}", "2,1", "nor has a set"),
    (r"3\pm\sqrt2", r"3+\sqrt{2},3-\sqrt{2}", "plus-minus is two values"),
    (r"(\frac{2}{2},2)", "(1,2)", "a pair, value by value"),
    ("1<x<2", "(1,2)", "an inequality as an interval"),
    ("x>3", r"(3,\infty)", "likewise, without a bound"),
    (r"x \in [-2,7]", "[-2,7]", "membership names the set"),
    ("x^2>4", r"(-\infty,-2)\cup(2,\infty)", "a union"),
    (r"\sqrt{xy}", r"\sqrt x\sqrt y", "equal wherever both are real"),
    (r"\ln(ab)", r"\ln(a)+\ln(b)", "likewise"),
    (r"\sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5}", "1", "cube roots are real"),
    ("|x-1|<1", "x^2-2x<0", "inequalities with one solution"),
    (r"[0,2]\cap[1,3]", "[1,2]", "an intersection"),
    ("y^2=4x", "4x=y^2", "the sides of an equation"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}", "brackets of a matrix"),
    ("\u221a2\u00b7\u03c0", r"\pi\sqrt{2}", "characters of Unicode"),
]
DIFFERENT = [
    ("x^2+1", "(x-1)(x+1)", "values"),
    ("R^2-r^2", "r^2-R^2", "capitals matter"),
    ("0.333333", "1/3", "a decimal is exactly what it says"),
    (r"\sqrt{2}", "1.414214", "likewise"),
    (r"\frac{\pi}{10^{20}}", "0", "small is not 0"),
    (r"\sqrt{10^{20}+1}", "10^{10}", "close is not equal"),
    (r"50\%", "50", "a per cent is a hundredth"),
    ("(1,2)", "(2,1)", "a pair has an order"),
    (r"\{1,2\}", "(1,2)", "a set has none, so it is no pair"),
    ("(1,2)", "[1,2]", "open and closed"),
    ("(1,2)", "1.5", "an interval is no value"),
    (r"(0,9)\cup(9,36)", "(0,36)", "a union with a hole"),
    ("1,2", "1,2,3", "lists of two lengths"),
    ("2x+z=1", "1", "an equation is not its right side"),
    ("y=2x", "y=3x", "equations"),
    ("x>1", r"x\ge 1", "strict or not"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", "matrices"),
    ("y=2x+3", "2x+3", "an equation is no value: names are taken off before"),
    ("1,000", "1", "thousands commas"),
    ("a_1", "a_2", "indices"),
    ("2m", "2", "a variable is no unit"),
    (r"\sqrt{x^2}", "x", "not equal where x is negative"),
    ("x+y=1", r"\lfloor 1.5\rfloor", "an equation is no value"),
    (r"\{(1,3),(2,4)\}", r"\{(1,4),(2,3)\}", "points are no intervals that overlap"),
]
UNDECIDED = [
    ("x" * (MAX_CHARACTERS + 1) + "1", "1", "long"),
    ("9^{9^9}", "3", "a tower of powers"),
    ("9^{9999}", "3", "a large exponent"),
    ("7" * 41, "3", "many digits in a row"),
    ("+".join(["99"] * 70), "3", "many digits"),
    ("(" * 11 + "2" + ")" * 11, "3", "nested deep"),
    ("{" * 400 + "1", "3", "braces that never close"),
    ("}1{", "3", "braces the wrong way round"),
    ("(9!)!!", "3", "factorials of factorials"),
    ("9999!", "3", "a large factorial"),
    (r"\binom{999999}{1234}", "3", "a large binomial"),
    (r"\int_0^1 x dx", r"\frac12", "an integral"),
    (r"\sum_{k=1}^{n} k", "n", "a sum"),
    (r"\frac{1}{0}", r"\frac{2}{0}", "no number at all"),
    (r"x+\foo", "x", "an unknown command"),
    ("A^T", "A", "a transposition, which the parser would drop"),
    (r"\sin x\cdot 2", r"\sin 2x", "a product, which the parser would take into the function"),
    ("101_2", "5", "a base, which the parser would drop"),
    (r"\gcd(m,n)", "1", "which the parser takes for 1"),
    ("f(x)+f(y)", "f(x+y)", "a function's letter, which the parser takes for a factor"),
    (r"\frac{dy}{dx}", r"\frac{y}{x}", "a derivative, which the parser takes for a fraction"),
    (r"\{x|x>2\}", r"\emptyset", "a set by its property"),
    (r"5\text{M}", "5", "words"),
    ("__import__('os')", "3", "Python"),
    ("x.__class__", "3x", "an attribute"),
    ("1+\x00", "1", "a null byte"),
    ("\u0661", "1+0", "a digit of another script"),
    ("\ud800+1", "1", "half a character"),
]


@pytest.fixture
def comparer() -> Iterator[Callable[..., Comparer]]:
    """Make comparers with limits of one's own; their workers end with the test."""
    made: list[Comparer] = []

    def make(**limits: float) -> Comparer:
        made.append(Comparer(Limits(**{"workers": 1} | limits)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def children(pid: int) -> list[int]:
    """The processes that a process has forked."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory(pid: int, field: str) -> int:
    """KiB of a running process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(a, b, True) for a, b, _ in EQUAL]
    + [(a, b, False) for a, b, _ in DIFFERENT]
    + [(a, b, None) for a, b, _ in UNDECIDED],
    ids=[reason for _, _, reason in EQUAL + DIFFERENT + UNDECIDED],
)
def test_answers(first: str, second: str, expected: bool | None):
    assert equal([(first, second), (second, first)]) == [expected, expected]


def test_words_are_different_without_a_worker(comparer):
    one = comparer()
    pairs = [("blue", "red"), ("B", "C"), (r"\text{Monday}", "Tuesday"), ("B", "(C)"), ("yes", "12"), ("x" * 400, "3")]
    assert one.equal(pairs) == [False] * 5 + [None]
    assert one.processes() == []


def test_every_admitted_answer_equals_itself_without_a_worker(comparer):
    one = comparer()
    answers = [text for a, b, _ in EQUAL + DIFFERENT for text in (a, b)]
    assert all(admit(text) is not None or is_prose(text) for text in answers)
    assert one.equal([(text, text) for text in answers]) == [True] * len(answers)
    assert one.processes() == []


def test_a_pair_is_compared_once_in_either_order(comparer):
    one = comparer(comparisons=3)
    one.equal([("x+1", "1+x")])
    (worker,) = one.processes()
    assert one.equal([("x+1", "1+x"), ("1+x", "x+1")] * 50) == [True] * 100
    assert one.processes() == [worker]  # more than its three comparisons would have been another process


def test_a_worker_is_replaced_after_its_comparisons(comparer):
    one = comparer(comparisons=2)
    seen = set()
    for i in range(2, 7):
        assert one.equal([(f"x+x^{i}", f"x^{i}+x")]) == [True]
        seen |= set(one.processes())
    assert len(seen) == 3


def test_the_memory_of_results_is_bounded(comparer):
    one = comparer(remembered=2)
    pairs = [(f"x+{i}", f"{i}+x") for i in range(4)]
    assert one.equal(pairs) == [True] * 4
    assert len(one._memo) == 2


def test_a_stuck_comparison_ends_at_its_processor_time(comparer):
    assert all(admit(text) is not None for text in STUCK)
    one = comparer(cpu_seconds=0.5, pair_seconds=60)
    assert one.equal([("x+1", "1+x")]) == [True]
    (worker,) = one.processes()
    (stuck,) = children(worker)
    start = time.monotonic()
    assert one.equal([STUCK, ("x+2", "2+x")]) == [None, True]
    assert time.monotonic() - start < 20  # a minute is what the clock would have allowed
    assert one.processes() == [worker] and stuck not in children(worker)  # what has everything loaded goes on
    start = time.monotonic()
    assert one.equal([STUCK]) == [None]
    assert time.monotonic() - start < 0.1  # remembered


def test_a_comparison_that_the_clock_ends_is_tried_again_and_then_lost(comparer, capfd):
    """It is counted and said; nothing of it is remembered, as the next time may be another."""
    one = comparer(cpu_seconds=60, pair_seconds=0.2, tries=2)
    assert one.equal([("x+1", "1+x")]) == [True]
    (stuck,) = one.processes()
    start = time.monotonic()
    assert one.equal([STUCK]) == [None]
    assert 0.8 <= time.monotonic() - start < 15  # 0.2 and 0.6 seconds, and the start of another worker
    assert one.processes() == [] and one.lost == 1
    assert "1 comparisons were lost" in capfd.readouterr().err
    with pytest.raises(ProcessLookupError):
        os.kill(stuck, 0)
    assert STUCK not in one._memo and tuple(sorted(STUCK)) not in one._memo
    assert one.equal([("x+2", "2+x")]) == [True] and one.lost == 1


def test_a_worker_that_was_stopped_changes_no_answer(comparer, capfd):
    one = comparer(pair_seconds=1)
    pairs = [(r"\sin^2 x+\cos^2 x", "1"), ("x^2-1", "(x-1)(x+1)"), ("x+3", "x+4")]
    assert one.equal([("x+1", "1+x")]) == [True]
    (worker,) = one.processes()
    os.killpg(worker, signal.SIGSTOP)
    assert one.equal(pairs) == [True, True, False]
    assert worker not in one.processes()  # nobody waits for it, and it is gone
    assert one.equal(pairs) == [True, True, False]
    assert one.lost == 0 and capfd.readouterr().err == ""


def test_a_process_that_was_stopped_itself_goes_on_where_it_was():
    code = f"""
import sys
from dataclasses import replace
from ttrl_jax.reward.symbolic import Comparer, Limits
one = Comparer(Limits(workers=1))
assert one.equal([("x+1", "1+x")]) == [True]
one._limits = replace(one._limits, pair_seconds=4.0, batch_seconds=6.0)  # now that the worker has started
print("begun", flush=True)
print(one.equal([{STUCK!r}, ("x+2", "2+x")]), one.lost)
one.close()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "begun\n"
    time.sleep(0.3)
    parent.send_signal(signal.SIGSTOP)
    time.sleep(7)  # beyond all deadlines
    parent.send_signal(signal.SIGCONT)
    assert parent.communicate(timeout=60)[0] == "[None, True] 0\n"


def test_a_batch_ends_at_its_deadline(comparer):
    one = comparer(cpu_seconds=60, pair_seconds=60)
    assert one.equal([("x+1", "1+x")]) == [True]
    one._limits = replace(one._limits, batch_seconds=2)  # now that the worker has started
    start = time.monotonic()
    assert one.equal([("x+2", "2+x"), STUCK, ("x+3", "3+x")]) == [True, None, None]
    assert 2 <= time.monotonic() - start < 2.5
    assert one.lost == 2
    assert one.equal([("x+3", "3+x")]) == [True]  # what was not tried is not remembered


def test_a_memory_hog_is_contained(comparer):
    assert all(admit(text) is not None for text in HOG)
    one = comparer(cpu_seconds=120, question_seconds=240, pair_seconds=120, memory_mib=200)
    assert one.equal([("x+1", "1+x")]) == [True]
    (worker,) = one.processes()
    limit = Path(f"/proc/{worker}/limits").read_text().split("Max address space")[1].split()[:2]
    assert limit == [str(200 << 20)] * 2
    assert memory(worker, "VmPeak") < 120 << 10
    (greedy,) = children(worker)
    start = time.monotonic()
    assert one.equal([HOG, ("x+2", "2+x")]) == [None, True]
    assert time.monotonic() - start < 60  # by memory, not by time
    assert one.processes() == [worker] and greedy not in children(worker)


@pytest.mark.parametrize("which", ["process", "child", "both"])
def test_a_worker_killed_from_outside_is_replaced(comparer, which: str):
    one = comparer()
    assert one.equal([("x+1", "1+x")]) == [True]
    (worker,) = one.processes()
    (child,) = children(worker)
    for pid in {"process": [worker], "child": [child], "both": [child, worker]}[which]:
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.01)
    assert one.equal([("x+2", "2+x")]) == [True]
    assert worker not in one.processes() and gone(child)
    assert one.lost == 0


def test_an_answer_that_is_no_answer_replaces_the_worker(comparer):
    one = comparer()
    assert one.equal([("x+1", "1+x")]) == [True]
    (worker,) = one._workers
    imposter = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.readline(); print('true' * 10_000, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    genuine, worker.process = worker.process, imposter
    try:
        assert one.equal([("x+2", "3+x")]) == [False]
        assert imposter.returncode is not None
    finally:
        genuine.kill()
        genuine.communicate()


def test_workers_share_the_work(comparer):
    one = comparer(workers=2)
    assert one.equal([(f"x+x^{i}", f"x^{i}+x") for i in range(2, 30)]) == [True] * 28
    assert len(one.processes()) == 2


def test_a_forked_child_leaves_the_parents_workers_alone(comparer):
    """In a process of its own, as JAX and fork do not go together."""
    code = """
import os
from ttrl_jax.reward import symbolic
assert symbolic.equal([("x+1", "1+x")]) == [True]
before = symbolic._COMPARER.processes()
child = os.fork()
if child == 0:
    fine = symbolic._COMPARER.processes() == [] and symbolic.equal([("x+2", "2+x"), ("1+x", "x+1")]) == [True, True]
    symbolic._COMPARER.close()
    os._exit(0 if fine else 1)
assert os.waitpid(child, 0)[1] == 0
assert symbolic.equal([("x+3", "3+x")]) == [True]
assert symbolic._COMPARER.processes() == before
print(before[0])
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert gone(int(done.stdout))  # closed when the parent left


def gone(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_leave_quietly_with_their_parent(number: int):
    code = """
import signal, time
from ttrl_jax.reward import symbolic
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
symbolic.equal([("x+1", "1+x")])
try:
    print(*symbolic._COMPARER.processes(), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    assert symbolic.equal([("x+2", "2+x")]) == [True]  # Ctrl-C was not sent to the worker
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    worker = int(parent.stdout.readline())
    assert os.getpgid(worker) != os.getpgid(parent.pid)
    os.killpg(parent.pid, number)  # as a terminal does
    _, errors = parent.communicate(timeout=60)
    assert errors == ""
    assert parent.returncode == (0 if number == signal.SIGINT else -signal.SIGKILL)
    assert gone(worker)


def test_a_worker_gets_a_small_environment(comparer, monkeypatch):
    monkeypatch.setenv("SECRET", "of the parent")
    one = comparer()
    one.equal([("x+1", "1+x")])
    (worker,) = one.processes()
    names = {entry.split("=")[0] for entry in Path(f"/proc/{worker}/environ").read_text().split("\0") if entry}
    given = {"PYTHONPATH", "PYTHONHASHSEED", "LC_ALL", "SYMPY_GROUND_TYPES", "MPMATH_NOGMPY"}
    assert names - {"LD_LIBRARY_PATH"} == given
    opened = {os.readlink(f"/proc/{worker}/fd/{fd}").split(":")[0] for fd in os.listdir(f"/proc/{worker}/fd")}
    assert opened == {"/dev/null", "pipe"}


def test_a_worker_that_cannot_start_says_so(comparer, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended 3 times in a row, the last time with status 1"):
        comparer().equal([("x+1", "1+x")])


def test_importing_starts_no_worker():
    code = "from ttrl_jax.reward import symbolic; print(symbolic._COMPARER.processes(), symbolic.equal([('2', 'B')]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[] [False]\n"


HARD = [(rf"\sin x=\cos x^{{{n}}}+x", rf"\sin x+0=\cos x^{{{n}}}+x+x-x+1") for n in range(5, 25)]


def test_a_question_takes_a_few_seconds_whatever_is_in_it(comparer):
    """Of hard pairs few are tried, in their order; that is so in each step, and costs nothing in the next."""
    one = comparer(workers=2, cpu_seconds=0.5, question_seconds=1.2, pair_seconds=60)
    assert one.equal([("x+1", "1+x")]) == [True]
    pairs = [("x+2", "2+x"), *HARD, ("x+3", "3+x")]
    assert one.equal(pairs) == [True] + [None] * (len(HARD) + 1)
    assert len(one._memo) <= 2 + 3 + 2  # three used the time up, and another worker had begun one
    start = time.monotonic()
    assert one.equal(pairs) == [True] + [None] * (len(HARD) + 1)
    assert time.monotonic() - start < 0.1
    assert one.lost == 0


def test_what_is_remembered_decides_nothing(comparer):
    """Of a question whose time ends, the same pairs are decided whether or not they were compared before."""
    limits = {"cpu_seconds": 0.5, "question_seconds": 0.9, "pair_seconds": 60}
    fresh, experienced = comparer(**limits), comparer(**limits)
    pairs = [HARD[0], ("x+2", "2+x"), HARD[1], ("x+3", "3+x"), HARD[2], ("x+4", "4+x")]
    for pair in pairs:
        experienced.equal([pair])
    expected = [None, True, None, None, None, None]  # two hard ones use the time up
    assert fresh.equal(pairs) == experienced.equal(pairs) == expected
    assert experienced.equal([("x+4", "4+x")]) == [True]


def test_a_pair_that_is_lost_again_and_again_is_let_be(comparer, capfd):
    one = comparer(batch_seconds=0.0, tries=2)
    assert one.equal([("x+2", "2+x")]) == [None] and one.equal([("x+2", "2+x")]) == [None] and one.lost == 2
    one._limits = replace(one._limits, batch_seconds=60.0)
    assert one.equal([("x+2", "2+x")]) == [None] and one.lost == 2
    assert capfd.readouterr().err.count("1 comparisons were lost") == 2


def test_a_block_is_one_question_and_collects_what_is_not_decided(monkeypatch, comparer):
    one = comparer(cpu_seconds=0.5, pair_seconds=60)
    monkeypatch.setattr(symbolic, "_COMPARER", one)
    with symbolic.question() as outer:
        with symbolic.question(0.4) as asked:
            assert symbolic.equal([HARD[0]]) == [None]
            assert symbolic.equal([("x+2", "2+x")]) == [None]  # no time is left
            assert symbolic.equal([("1/0", "2"), ("x", "x")]) == [None, True]
            symbolic.note("odd", "text")
        assert symbolic.equal([("x+2", "2+x")]) == [True]
    found = [*HARD[:1], ("x+2", "2+x"), ("1/0", "2"), ("odd", "text")]
    assert asked.undecided == outer.undecided == [Undecided(*pair, "undecided") for pair in found]
    one._limits = replace(one._limits, batch_seconds=0.0)
    with symbolic.question() as asked:
        assert symbolic.equal([("x+9", "9+x")]) == [None]
    assert asked.undecided == [Undecided("x+9", "9+x", "lost")]

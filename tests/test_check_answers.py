"""Hand-worked: what scripts/check_answers.py reads out of test files, and what it says of them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import check_answers  # noqa: E402

# In the shapes of the three suites; running any of them would fail.
GOLD_AND_PRED = r"""
raise SystemExit("nothing of this may be run")
import math, pytest

@pytest.mark.parametrize(
    "gold, pred, expected",
    [
        (r"$\frac{1}{2}$", r"so it is \boxed{0.5}.", 1),
        # (r"$1$", r"$2$", 1),
        ("$4$", "$4\\sqrt{2}$", 0),
        (f"${math.sqrt(16):.1f}$", r"$7$ or $8$", 0),
        (r"$\\frac12$", "Of 3 of them. Final Answer: The final answer is $\\frac{1}{2}$. I hope it is correct.", 1),
        ("120", "the number is not 10 which is 120", 1),
    ],
)
def test_first(gold, pred, expected):
    assert compare_strings(gold, pred) == expected

@pytest.mark.parametrize("gold, pred, strict, expected", [("$1$", "$2$", True, 1)])
def test_second(gold, pred, strict, expected):
    pass
"""
PAIRS = r"""
@pytest.mark.parametrize("output_pair", [(5, 5.0), (5 / 2, "\\frac{5}{2}"), ("1", "2")], ids=str)
def test_correct_examples(output_pair):
    pass

@pytest.mark.parametrize("output_pair", [(0, None), ("odd", "\\text{even}")], ids=str)
def test_incorrect_examples(output_pair):
    pass
"""
ASSERTED = r"""
class TestIsEquiv(unittest.TestCase):
	def test_half(self):
		test_in = "1/2"
		test_out = "\\frac{1}{2}"
		self.assertTrue(is_equiv(test_in, test_out))
	def test_third(self):
		test_in = "1/2"
		test_out = "1/3"
		self.assertFalse(is_equiv(test_in, test_out))
"""


@pytest.fixture
def suites(tmp_path: Path) -> Path:
    for name, text in {"test_all.py": GOLD_AND_PRED, "test_pairs.py": PAIRS, "is_equiv_test.py": ASSERTED}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_cases(suites: Path):
    found = [(c.first, c.second, c.equal) for c in check_answers.cases_of(suites / "test_all.py")]
    assert found == [
        (r"\frac{1}{2}", "0.5", True),
        ("4", r"4\sqrt{2}", False),
        ("4.0", "7, 8", False),
        (r"\frac12", r"\frac{1}{2}", True),
        ("120", "120", True),
        ("1", "2", True),
    ]
    found = [(c.first, c.second, c.equal) for c in check_answers.cases_of(suites / "test_pairs.py")]
    assert found[:3] == [("5", "5.0", True), ("2.5", r"\frac{5}{2}", True), ("1", "2", True)]
    assert found[3:] == [("0", "", False), ("odd", r"\text{even}", False)]
    found = [(c.test, c.equal) for c in check_answers.cases_of(suites / "is_equiv_test.py")]
    assert found == [("test_half", True), ("test_third", False)]


def command(*paths: Path) -> subprocess.CompletedProcess:
    arguments = [sys.executable, ROOT / "scripts" / "check_answers.py", *paths]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120)


def test_what_is_said(suites: Path):
    done = command(suites)
    assert done.returncode == 0 and done.stderr == ""
    said = done.stdout.splitlines()
    assert said[0] == "hendrycks: 2 of 2 as its authors say"
    assert said[1:3] == ["math-verify: 5 of 6 as its authors say", "  test_second: '1' and '2' are equal there"]
    assert said[3:] == [
        "NeMo-Skills: 4 of 5 as its authors say",
        "  test_correct_examples: '1' and '2' are equal there",
    ]


def test_what_cannot_be_read(tmp_path: Path):
    assert "there is no " in command(tmp_path / "none.py").stderr
    (tmp_path / "test_other.py").write_text("def test_other():\n    assert True\n")
    done = command(tmp_path)
    assert done.returncode == 2 and "got none in" in done.stderr

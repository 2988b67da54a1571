"""Semantics: which answers are read out of truths, and which sets have none that can be."""

from pathlib import Path

import pytest

from configs import default
from ttrl_jax.data.problems import truths
from ttrl_jax.errors import InputError
from ttrl_jax.tasks.sets import read_questions
from ttrl_jax.tasks.truths import read_truths

GSM8K = "She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18"
PROSE = "There are 3 boxes with 5 balls in each of them, so that he has 15 of them in all after that."


def read(*given: str | None, way: str = "", of_formulas: bool = True) -> tuple[list[str | None], list[str]]:
    notes: list[str] = []
    return list(read_truths(given, way=way, path="d.json", of_formulas=of_formulas, say=notes.append)), notes


@pytest.mark.parametrize(
    ("way", "text", "answer"),
    [
        ("hash", GSM8K, "18"),
        ("hash", "so\n#### 1,250\n", "1,250"),
        ("hash", "#### \\frac{1}{2}", "\\frac{1}{2}"),
        ("answer_is", "So it is 3. The answer is 85.", "85"),
        ("boxed", "Then $x = \\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("last_number", PROSE, "15"),
        ("tag:cevap", "<mantık>3 * 5</mantık> <cevap>15</cevap>", "15"),
    ],
)
def test_the_ways_to_read_a_worked_solution(way: str, text: str, answer: str):
    assert read(text, None, way=way) == ([answer, None], [])


def test_four_hashes_in_all_truths_are_seen_without_being_told():
    assert read(GSM8K, None, "#### -3") == (
        ["18", None, "-3"], ["the truths are what follows #### in each (data.truth_extract='hash')"],
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["85", "025", "-1,250.5", "85 apples", "\\frac{3}{4}", "\\left( 3, \\frac{\\pi}{2} \\right)", "(-\\infty, 2]",
     "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\text{Evelyn}", "B", "even", "x^2 + 3x + 2", "12:30 p.m.",
     "the fifth of May, a Monday"],
)  # fmt: skip
def test_answers_stay_as_they_stand(text: str):
    assert read(text) == ([text], [])


@pytest.mark.parametrize(
    "text", ["The answer is 85.", "**Answer:** 85", "so \\boxed{85}", "#### 85\nThat is all.", PROSE]
)
def test_worked_solutions_alone_are_refused(text: str):
    with pytest.raises(InputError, match="d.json: no truth can be read as an answer.*set data.truth_extract to hash"):
        read(text, None, text)
    assert read(text, of_formulas=False) == ([text], [])  # a task of one's own compares as it likes
    found, notes = read(text, "85")
    assert found == [text, "85"] and notes[0].startswith("1 of 2 truths look like worked solutions")


def test_what_a_way_cannot_read_is_missing_and_said():
    found, notes = read("\\boxed{3}", "no box", None, way="boxed")
    assert found == ["3", None, None]
    assert notes == ["1 of 2 truths cannot be read by data.truth_extract='boxed': 'no box'"]
    with pytest.raises(InputError, match="no truth can be read by data.truth_extract='hash', such as '85'"):
        read("85", "86", way="hash")
    with pytest.raises(InputError, match="data.truth_extract must be empty, hash or one of.*got box"):
        read("85", way="box")
    assert read(None, None, way="hash") == ([None, None], [])


@pytest.mark.parametrize(("file", "numbers"), [("GSM8K-test-300.json", 300), ("SVAMP-300.json", 300)])
def test_word_problems_go_in_as_they_are_published(file: str, numbers: int, ttrl_data: Path):
    config = default.get_config()
    config.data.path = str(ttrl_data / file)
    [questions] = read_questions(config)
    found = truths(questions.items)
    assert len(found) == numbers and all(float(truth.replace(",", "")) is not None for truth in found)
    assert ("data.truth_extract='hash'" in "".join(questions.notes)) == file.startswith("GSM8K")

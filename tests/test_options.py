"""Semantics: data with the columns of GPQA becomes multiple-choice prompts whose truth is a letter."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import gpqa
from ttrl_jax.data.options import ANSWERS
from ttrl_jax.data.problems import Problem, load, truths
from ttrl_jax.errors import InputError
from ttrl_jax.reward.choices import offered
from ttrl_jax.tasks.sets import QuestionSet, read_questions, with_tasks
from ttrl_jax.tasks.voting import cast_votes


def read_sets(config: ConfigDict) -> tuple[QuestionSet, ...]:
    return with_tasks(read_questions(config), config)


# As in the authors' csv: other columns too, line ends and space around the texts.
ROWS = [
    {
        "Pre-Revision Question": f"old {i}?",
        "Question": f" Which one is\nnumber {i}?\n",
        "Correct Answer": f"right {i}\n",
        "Incorrect Answer 1": f"wrong {i} a",
        "Incorrect Answer 2": f"wrong {i} b ",
        "Incorrect Answer 3": f"wrong {i} c",
        "Record ID": f"rec{i:03}",
        "Subdomain": "Physics",
    }
    for i in range(40)
]


def write(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
        return str(path)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def read(path: str, *, seed: int = 0, question: str = "prompt", truth: str = "answer", limit=None) -> list[Problem]:
    columns = {"question_column": question, "truth_column": truth}
    return load(path, split="train", level=None, limit=limit, seed=seed, **columns)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_prompts_and_letters(tmp_path: Path, suffix: str):
    for i, problem in enumerate(read(write(tmp_path / f"gpqa{suffix}", ROWS))):
        assert (problem.index, problem.id) == (i, f"rec{i:03}")
        question, options = problem.question.split("\n\n")
        assert question == f"Which one is\nnumber {i}?"
        shown = dict(line.split(". ", 1) for line in options.split("\n"))
        assert list(shown) == ["A", "B", "C", "D"]
        assert sorted(shown.values()) == [f"right {i}", *(f"wrong {i} {letter}" for letter in "abc")]
        assert shown[problem.truth] == f"right {i}"
        assert offered(problem.question) == "ABCD"


def test_the_order_depends_on_the_seed_and_the_id_alone(tmp_path: Path):
    path = write(tmp_path / "gpqa.csv", ROWS)
    found = {problem.id: problem.question for problem in read(path)}
    assert found == {problem.id: problem.question for problem in read(write(tmp_path / "back.csv", ROWS[::-1]))}
    assert found == {problem.id: problem.question for problem in read(path, seed=0, limit=None)}
    assert found != {problem.id: problem.question for problem in read(path, seed=1)}
    letters = Counter(truths(read(path)))
    assert set(letters) == set("ABCD") and max(letters.values()) < 20  # no place is preferred


def test_what_columns_are_asked_for(tmp_path: Path):
    path = write(tmp_path / "gpqa.csv", ROWS)
    assert read(path, question="Question", truth="Correct Answer") == read(path)
    assert truths(read(path, truth="")) is None
    assert read(path, question="Pre-Revision Question", truth="Subdomain")[0].question == "old 0?"
    few = write(tmp_path / "few.csv", [{"Question": "Why?", "Correct Answer": "so"}])
    assert read(few, question="Question", truth="Correct Answer") == [Problem(0, "0", "Why?", "so")]


@pytest.mark.parametrize("name", ["Question", *ANSWERS])
def test_a_missing_text_is_refused(tmp_path: Path, name: str):
    rows = [dict(row) for row in ROWS]
    rows[3][name] = " \n"
    with pytest.raises(InputError, match=rf"column '{name}' is empty in row 3 \(the first is 0\)"):
        read(write(tmp_path / "gpqa.csv", rows))


def test_the_config_reads_the_authors_file(tmp_path: Path):
    config = gpqa.get_config("model")
    config.data.path = write(tmp_path / "gpqa_diamond.csv", ROWS)
    [own] = read_sets(config)
    problem = own.items[0]
    said = [[f"The correct option is {problem.truth}.", rf"\boxed{{\text{{{problem.truth}}}}}", "The answer is E."]]
    assert cast_votes(own.task, said, questions=[problem.question])[0].classes == (0, 0, None)
    config.seed = 5
    [other] = read_sets(config)
    assert [p.question for p in own.items] != [p.question for p in other.items]

"""Semantics: data.level keeps the questions of one level, as MATH-500 and files like it name them."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from configs import math500
from ttrl_jax.data.problems import Problem, load
from ttrl_jax.errors import InputError
from ttrl_jax.tasks.sets import read_questions


def rows(*levels: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"question {i}", "answer": str(i), "level": level} for i, level in enumerate(levels)]


def questions(file: Path, level: int | None, *, limit: int | None = None) -> list[Problem]:
    return load(str(file), split="test", question_column="prompt", truth_column="answer", level=level, limit=limit)


def written(folder: Path, content: list[dict[str, Any]], suffix: str = ".json") -> Path:
    file = folder / f"data{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), file)
    else:
        file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
@pytest.mark.parametrize(
    "levels", [(1, 3, 2, 3), ("Level 1", "Level 3", "Level ?", "Level 3"), ("1", "3", "", "3"), (1.0, 3.0, 5.0, 3.0)]
)
def test_rows_of_the_level(tmp_path: Path, suffix: str, levels: tuple[Any, ...]):
    file = written(tmp_path, rows(*levels), suffix)
    assert questions(file, 3) == [Problem(0, "0", "question 1", "1", 3), Problem(1, "1", "question 3", "3", 3)]
    assert questions(file, 3, limit=1) == [Problem(0, "0", "question 1", "1", 3)]
    assert [problem.truth for problem in questions(file, 1)] == ["0"]
    third = {2: 2, 5.0: 5, "": None, "Level ?": None}[levels[2]]
    assert [problem.level for problem in questions(file, None)] == [1, 3, third, 3]


def test_a_level_that_no_question_has(tmp_path: Path):
    file = written(tmp_path, rows(2, 1, 2, "Level ?"))
    with pytest.raises(InputError, match=r"has no question of level 5; its levels: 1, 2\.$"):
        questions(file, 5)


def test_files_without_levels(tmp_path: Path):
    file = written(tmp_path, [{"prompt": "a", "answer": "1"}])
    with pytest.raises(InputError, match="no column 'level'.*'prompt', 'answer'.*is a level by itself"):
        questions(file, 3)
    with pytest.raises(InputError, match="has no levels: leave data.level at 0"):
        load("builtin:sums.train", split="", question_column="prompt", truth_column="answer", level=3, limit=None)


def test_messages_count_the_rows_of_the_level(tmp_path: Path):
    content = rows(1, 2, 2)
    content[2]["prompt"] = ""
    file = written(tmp_path, content)
    with pytest.raises(InputError, match=r"data.json at level 2: the question, column 'prompt', is empty in row 1 "):
        questions(file, 2)
    assert len(questions(file, 1)) == 1


@pytest.mark.parametrize("path", ["levels=@@level=3", "math500=@@level=3"])
def test_a_set_of_evaluation_of_one_level(tmp_path: Path, path: str):
    file = written(tmp_path, [row | {"problem": row["prompt"]} for row in rows(1, "Level 3", 2, 3)])
    config = math500.get_config("model")
    config.data.path, config.eval.tasks = str(file), (path.replace("@@", f"{file}@"), f"all={file}")
    own, level, whole = read_questions(config)
    assert [problem.truth for problem in level.items] == ["1", "3"] and "questions of level 3 alone" in level.notes
    assert len(own.items) == len(whole.items) == 4


@pytest.mark.parametrize("level", ["", "0", "x", "-1"])
def test_no_level_of_a_set_of_evaluation(tmp_path: Path, level: str):
    config = math500.get_config("model")
    config.data.path, config.eval.tasks = "builtin:sums.train", (f"a=b@level={level}",)
    with pytest.raises(InputError, match="must end in @level=N, N a whole number from 1"):
        read_questions(config)

"""Semantics: what the script samples, what it joins with a translation, and which input it refuses in one sentence."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from configs import turkish_math
from ttrl_jax.data.problems import load, truths
from ttrl_jax.errors import InputError

SPEC = importlib.util.spec_from_file_location(
    "prepare_word_problems", Path(__file__).parents[1] / "scripts" / "prepare_word_problems.py"
)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)

ANSWERS = {
    "42": "42",
    "1,250": "1250",
    "-7": "-7",
    "+7": "7",
    "18.00": "18",
    "$18": "18",
    "007": "7",
    "He has 3 x 4 = <<3*4=12>>12 apples.\n#### 12": "12",
    "So 1,000 + 250.\n#### 1,250": "1250",
    "#### 1 is not it\n#### 2": "2",
    "2 + 0.5\n#### 2.5": None,
    "2.5": None,
    "1,25": None,
    "1/2": None,
    "12 apples": None,
    "the answer is 12": None,
    "####": None,
    "9" * 5000: None,
}


@pytest.mark.parametrize(("answer", "number"), ANSWERS.items(), ids=lambda x: str(x)[:20])
def test_whole_number(answer: str, number: str | None):
    """Hand-worked: what follows ####, or else the whole answer."""
    assert script.whole_number(answer) == number


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Call the script in an empty folder; what it prints."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        assert script.main(arguments) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(call, capsys: pytest.CaptureFixture) -> Callable[..., None]:
    """Call the script; it must say one line with some words, and write nothing."""

    def refused(arguments: list[str], *words: str) -> None:
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        assert script.main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
        for word in words:
            assert word in said
        assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before

    return refused


def rows_of(path: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write_source(count: int = 30) -> None:
    """Questions 0, 1, 2 ... with their own numbers as answers, every tenth a fraction; the first one twice."""
    rows = [{"question": f"How many is {i}?", "answer": f"It is\n#### {i}{'.5' if i % 10 == 9 else ''}"}
            for i in range(count)]  # fmt: skip
    Path("source.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))


SAMPLE = ["sample", "source.jsonl", "--train=20", "--test=6", "--out=made"]


def test_samples_are_distinct_whole_and_drawn_by_the_seed(call):
    write_source()
    assert "27 of 31 questions" in call(*SAMPLE)
    rows = rows_of("made/questions.jsonl")
    assert [set(row) for row in rows] == [{"id", "question", "answer"}] * 26
    parts = [row["id"].split("-") for row in rows]
    assert [part for part, _ in parts] == ["train"] * 20 + ["test"] * 6
    asked = [int(re.search(r"\d+", row["question"])[0]) for row in rows]
    assert [row["answer"] for row in rows] == [number for _, number in parts] == [str(i) for i in asked]
    assert len(set(asked)) == 26 and not {9, 19, 29} & set(asked)
    assert asked != sorted(asked)
    call(*SAMPLE[:-1], "--out=again")
    assert rows_of("again/questions.jsonl") == rows
    call(*SAMPLE[:-1], "--out=other", "--seed=1")
    assert rows_of("other/questions.jsonl") != rows


def test_a_translation_in_any_order_becomes_the_data_of_the_config(call):
    write_source()
    call(*SAMPLE)
    sampled = rows_of("made/questions.jsonl")
    translated = [{"id": row["id"], "question": row["question"].replace("How many is", "Kaç eder:")} for row in sampled]
    translated[3]["question"] = sampled[3]["question"]
    lines = [json.dumps(row) + "\n" for row in reversed(translated)]
    Path("translated.jsonl").write_text("".join(lines))
    assert "25 questions are translated, 1 are as they were" in call("finish", "made", "--translated=translated.jsonl")
    data = turkish_math.get_config().data
    for part, count in (("train", 20), ("test", 6)):
        problems = load(
            f"made/{part}.jsonl", split="", question_column=data.question_column, truth_column=data.truth_column,
            level=None, limit=None,
        )  # fmt: skip
        assert len(problems) == count
        for problem, answer in zip(problems, truths(problems), strict=True):
            assert problem.id == f"{part}-{answer}"
            assert problem.question == f"{'How many is' if problem.id == sampled[3]['id'] else 'Kaç eder:'} {answer}?"


def test_without_a_translation_questions_stay(call):
    Path("source.csv").write_text('id,soru,sonuç\na,Bir?,1\nb,İki?,2\nc,Bin?,"1,000"\n')
    call(
        "sample", "source.csv", "--question-column=soru", "--answer-column=sonuç", "--train=2", "--test=1", "--out=made"
    )
    call("finish", "made")
    rows = rows_of("made/train.jsonl") + rows_of("made/test.jsonl")
    assert sorted((row["id"].split("-")[1], row["prompt"], row["answer"]) for row in rows) == [
        ("a", "Bir?", "1"), ("b", "İki?", "2"), ("c", "Bin?", "1000"),
    ]  # fmt: skip


def test_worked_answers_in_prose_are_read_by_a_named_way(call):
    rows = [{"problem": f"How many is {i}?", "answer": f"3 of them and {i - 3} more: he has {i}."} for i in range(4, 7)]
    rows += [{"problem": "And who?", "answer": "Nobody at all."}]
    Path("source.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = call("sample", "source.jsonl", "--truth-extract=last_number", "--train=2", "--test=1", "--out=made")
    assert "the question is the column 'problem'" in said and "1 of 4 truths cannot be read by --truth-extract=" in said
    assert sorted((row["question"], row["answer"]) for row in rows_of("made/questions.jsonl")) == [
        (f"How many is {i}?", str(i)) for i in range(4, 7)
    ]


def test_a_subset_and_a_split_of_a_hub_data_set(call, tmp_path: Path):
    for name in ("main", "other"):
        table = datasets.Dataset.from_list([{"question": f"{name} {i}?", "answer": f"#### {i}"} for i in range(3)])
        table.to_parquet(tmp_path / "hub" / name / "test-0.parquet")
    subsets = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("main", "other"))
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs:\n{subsets}---\n")
    call("sample", "hub", "--subset=main", "--train=2", "--test=1", "--out=made")
    assert {row["question"] for row in rows_of("made/questions.jsonl")} == {f"main {i}?" for i in range(3)}
    with pytest.raises(InputError, match="several subsets; set data.subset to one of main, other"):
        load("hub", split="train", question_column="question", truth_column="", level=None, limit=None)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--train=22"], ("27 different questions", "of 31", "28", "--train=22")),
        (["--test=0"], ("--test=0", "at least 1")),
        (["--seed=-1"], ("--seed=-1",)),
        (["--train=many"], ("--train", "many")),
        (["--out=source.jsonl"], ("source.jsonl exists", "--out")),
        (["--question-column=q"], ("'q'", "'question', 'answer'")),
        (["--answer-column=a"], ("'a'", "--answer-column")),
        (["--nonsense"], ("--nonsense",)),
    ],
)
def test_samples_that_are_refused(refused, more: list[str], words: tuple[str, ...]):
    write_source()
    refused([*SAMPLE, *more], *words)
    refused(["sample", "nowhere.jsonl", "--out=made"], "nowhere.jsonl")
    refused([], "command")


def test_a_sample_is_not_drawn_anew_over_its_translation(call, refused):
    write_source()
    call(*SAMPLE)
    refused([*SAMPLE, "--seed=1"], "questions.jsonl exists", "--out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[1:], ("1 of them are missing", "'train-", "0 others")),
        (lambda rows: [*rows, {"id": "train-x", "question": "?"}], ("0 of them", "1 others are there", "'train-x'")),
        # Rows without ids are numbered, and numbers are no ids of ours.
        (lambda rows: [{"question": row["question"]} for row in rows], ("26 of them", "26 others", "'0'")),
        (lambda rows: [row | {"id": "train-1"} for row in rows], ("26 of them", "26 others")),
        (lambda rows: [row | {"question": ""} for row in rows], ("question", "empty")),
        (lambda rows: [{"id": row["id"]} for row in rows], ("'question'", "'id'")),
    ],
)
def test_translations_that_are_refused(call, refused, change: Callable, words: tuple[str, ...]):
    write_source()
    call(*SAMPLE)
    rows = change([{"id": row["id"], "question": row["question"]} for row in rows_of("made/questions.jsonl")])
    Path("translated.json").write_text(json.dumps(rows))
    refused(["finish", "made", "--translated=translated.json"], *words)
    refused(["finish", "made", "--translated=nowhere.json"], "nowhere.json")
    refused(["finish", "nowhere"], "nowhere/questions.jsonl")

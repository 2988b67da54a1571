"""Data files of every format as users write them, and the order in which training visits the questions."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ttrl_jax.data import generate
from ttrl_jax.data.problems import Problem, Problems, load, truths
from ttrl_jax.errors import InputError

ROWS = [
    {"id": "a", "prompt": "What is 20 + 5?", "answer": "025"},
    {"id": "b", "prompt": 'Say "x, y",\nthen ü.', "answer": "\\frac{1}{2}"},
    {"id": "c", "prompt": "When was it?", "answer": "2024-01-05"},
]
EXPECTED = [Problem(i, row["id"], row["prompt"], row["answer"]) for i, row in enumerate(ROWS)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format that the path's suffix names."""
    match path.suffix.lower():
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        case ".csv":
            with path.open("w", encoding="utf-8", newline="") as out:
                writer = csv.DictWriter(out, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case ".json":
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        case ".jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


each_format = pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])


def read(path: Path | str, *, question: str = "prompt", truth: str = "answer", level=None, limit=None, **more: Any):
    columns = {"question_column": question, "truth_column": truth}
    return load(str(path), split="train", **columns, level=level, limit=limit, **more)


def refusal(path: Path | str, **options: Any) -> str:
    """The message of the InputError that reading `path` must raise."""
    with pytest.raises(InputError) as raised:
        read(path, **options)
    return str(raised.value)


def with_answers(*answers: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"question {i}", "answer": answer} for i, answer in enumerate(answers)]


def text_file(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


# ---- formats


@each_format
def test_every_format_gives_the_same_problems(tmp_path: Path, suffix: str) -> None:
    assert read(write(tmp_path / f"data{suffix}", ROWS)) == EXPECTED
    assert read(write(tmp_path / f"DATA{suffix.upper()}", ROWS)) == EXPECTED


def test_folder_in_hub_layout_has_splits(tmp_path: Path) -> None:
    data = tmp_path / "hub" / "data"
    data.mkdir(parents=True)
    write(data / "train-00000-of-00001.parquet", ROWS)
    write(data / "test-00000-of-00001.parquet", ROWS[:1])
    assert read(tmp_path / "hub") == EXPECTED
    options = {"question_column": "prompt", "truth_column": "answer", "level": None, "limit": None}
    assert load(str(tmp_path / "hub"), split="test", **options) == EXPECTED[:1]
    with pytest.raises(InputError, match="split 'validation', cannot be loaded"):
        load(str(tmp_path / "hub"), split="validation", **options)
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in refusal(tmp_path / "empty")


def test_csv_byte_order_mark_and_line_ends_inside_quotes(tmp_path: Path) -> None:
    file = text_file(tmp_path / "data.csv", '\ufeffprompt,answer\r\n"a\r\nb",2\r\n')
    assert read(file) == [Problem(0, "0", "a\r\nb", "2")]


def test_json_lines_keep_unicode_line_separators_and_skip_empty_lines(tmp_path: Path) -> None:
    question = "first\u2028second"
    file = text_file(tmp_path / "data.jsonl", f'\n{{"prompt": "{question}", "answer": "1"}}\n\n')
    assert [problem.question for problem in read(file)] == [question]


def test_parquet_columns_that_nobody_asked_for_are_left_alone(tmp_path: Path) -> None:
    year_beyond_9999 = pyarrow.array([10**15] * 3, pyarrow.timestamp("s"))  # Python has no such date
    table = pyarrow.Table.from_pylist(ROWS).append_column("time", year_beyond_9999)
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    assert read(tmp_path / "data.parquet") == EXPECTED


# ---- truths


@each_format
def test_zero_padded_truths_stay_as_written(tmp_path: Path, suffix: str) -> None:
    answers = ["025", "7", "073", "1.50", "0.12345678901234567"]
    found = read(write(tmp_path / f"data{suffix}", with_answers(*answers)))
    assert [problem.truth for problem in found] == answers


def test_numbers_become_plain_decimals(tmp_path: Path) -> None:
    written = ["25", "-3", "0.5", "2.50", "0.12345678901234567", "123456789012345678901", "1e-7", "1.5E3", '"025"']
    text = ",".join(f'{{"prompt": "q", "answer": {number}}}' for number in written)
    found = [problem.truth for problem in read(text_file(tmp_path / "data.json", f"[{text}]"))]
    assert found[:6] == written[:6]
    assert found[6:] == ["0.0000001", "1500.0", "025"]
    whole = write(tmp_path / "whole.parquet", with_answers(25, -3))
    assert [problem.truth for problem in read(whole)] == ["25", "-3"]
    fractions = write(tmp_path / "fractions.parquet", with_answers(0.5, 1e-7, 1e22))
    assert [problem.truth for problem in read(fractions)] == ["0.5", "0.0000001", "1" + 22 * "0"]


@each_format
def test_no_truth_column(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"data{suffix}", ROWS)
    without = [Problem(problem.index, problem.id, problem.question, None) for problem in EXPECTED]
    assert read(file, truth="") == read(file, truth="solution") == without


@each_format
@pytest.mark.parametrize("blank", ["", "  ", None])
def test_blank_truths_everywhere_mean_no_truths(tmp_path: Path, suffix: str, blank: str | None) -> None:
    found = read(write(tmp_path / f"data{suffix}", with_answers(blank, blank)))
    assert [problem.truth for problem in found] == [None, None]


@each_format
def test_some_truths_may_be_missing(tmp_path: Path, suffix: str) -> None:
    found = read(write(tmp_path / f"data{suffix}", with_answers("1", "", "3", " ")))
    assert truths(found) == ["1", None, "3", None]


def test_absent_fields_nulls_and_not_a_number_are_missing_truths(tmp_path: Path) -> None:
    absent = text_file(tmp_path / "data.json", '[{"prompt": "a", "answer": "1"}, {"prompt": "b"}]')
    assert truths(read(absent)) == ["1", None]
    null = text_file(tmp_path / "null.jsonl", '{"prompt": "a", "answer": null}\n{"prompt": "b", "answer": 2}\n')
    assert truths(read(null)) == [None, "2"]
    nan = write(tmp_path / "data.parquet", with_answers(float("nan"), 2.0))
    assert truths(read(nan)) == [None, "2.0"]


def test_a_truth_in_a_list_of_one_is_that_truth(tmp_path: Path) -> None:
    for suffix in (".json", ".parquet"):
        assert truths(read(write(tmp_path / f"data{suffix}", with_answers(["85"], ["$x$"])))) == ["85", "$x$"]


@pytest.mark.parametrize(("value", "kind"), [(True, "bool"), (["1", "2"], "list"), ({"a": 1}, "dict")])
def test_values_of_another_type_are_refused(tmp_path: Path, value: Any, kind: str) -> None:
    end = f"row 1 (the first is 0) holds a value of type {kind}."
    if kind != "list":
        file = write(tmp_path / "data.json", [{"prompt": "a", "answer": "1"}, {"prompt": value, "answer": value}])
        assert refusal(file) == f"{file}: the question, column 'prompt', must be text; {end}"
    file = write(tmp_path / "data.json", with_answers("1", value))
    assert refusal(file) == f"{file}: the truth, column 'answer', must be text or a number; {end}"


def test_truths_of_a_batch_are_none_where_no_question_has_one() -> None:
    known = [Problem(0, "0", "a", "1"), Problem(1, "1", "b", "02")]
    assert truths(known) == ["1", "02"]
    assert truths([known[1], known[0]]) == ["02", "1"]
    assert truths([known[0], Problem(2, "2", "c", None)]) == ["1", None]
    assert truths([Problem(2, "2", "c", None)]) is None


# ---- questions and ids


@each_format
def test_missing_question_column_lists_the_columns(tmp_path: Path, suffix: str) -> None:
    message = refusal(write(tmp_path / f"data{suffix}", ROWS), question="problem")
    assert "no column 'problem' for the question; its columns: 'id', 'prompt', 'answer'." in message


@each_format
def test_empty_questions_are_refused_by_row(tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": text, "answer": "1"} for text in ["a", "", "b", " \n"]]
    message = refusal(write(tmp_path / f"data{suffix}", rows))
    assert "the question, column 'prompt', is empty in rows 1, 3 (the first is 0)" in message


def test_question_that_is_a_number_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "data.json", [{"prompt": "a"}, {"prompt": 12}])
    assert "must be text; row 1 (the first is 0) holds a number." in refusal(file)


@each_format
def test_ids_of_the_column_are_used_if_distinct(tmp_path: Path, suffix: str) -> None:
    def ids(*given: Any) -> list[str]:
        rows = [{"id": value, "prompt": "q", "answer": "1"} for value in given]
        return [problem.id for problem in read(write(tmp_path / f"data{suffix}", rows))]

    assert ids("x", "z", "y") == ["x", "z", "y"]
    assert ids(7, 3, 5) == ["7", "3", "5"]
    assert ids("x", "y", "x") == ["0", "1", "2"]
    assert ids("x", None, None) == ["0", "1", "2"]


# ---- limit


@each_format
def test_limit_keeps_the_first(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"data{suffix}", ROWS)
    assert read(file, limit=2) == EXPECTED[:2]
    assert read(file, limit=50) == EXPECTED
    bad_beyond = write(tmp_path / f"bad{suffix}", with_answers("1", "2", ""))
    assert [problem.truth for problem in read(bad_beyond, limit=2)] == ["1", "2"]


def test_limit_below_one_is_refused() -> None:
    assert refusal("x.json", limit=0) == "The number of questions to keep must be at least 1, not 0."


# ---- files that cannot be read


def test_data_without_rows_is_refused(tmp_path: Path) -> None:
    empty = pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(empty, tmp_path / "none.parquet")
    files = [
        text_file(tmp_path / "none.json", "[]"),
        text_file(tmp_path / "none.jsonl", "\n"),
        text_file(tmp_path / "none.csv", "prompt,answer\n"),
        text_file(tmp_path / "blank.csv", ""),
        tmp_path / "none.parquet",
    ]
    assert [refusal(file) for file in files] == [f"{file} holds no questions." for file in files]
    blank = text_file(tmp_path / "blank.json", " \n")
    assert refusal(blank) == f"{blank} is empty."


UNREADABLE = {
    "a.json": (
        '[\n {"prompt": "a"},\n {"prompt" "b"}\n]',
        " is not JSON: Expecting ':' delimiter at line 3, column 12.",
    ),
    "a.jsonl": ('{"prompt": "a"}\n\n{"prompt": }', ", line 3, is not JSON: Expecting value at line 1, column 12."),
    "one.json": (
        '{"prompt": "a"}',
        ' must hold a list of objects or of texts, or {"data": such a list}, not one dict.',
    ),
    "mixed.json": (
        '[{"prompt": "a"}, "b"]',
        ": row 1 (the first is 0) must be an object with named fields, not a value of",
    ),
    "deep.json": ("[" * 200_000, " is nested too deeply to be read as JSON."),
    "latin.csv": ("prompt\nü\n", " is not UTF-8 text (byte 7): save it as UTF-8."),
    "a.md": ("[]", " ends in '.md'; data files end in .json, .jsonl, .csv, .tsv, .txt or .parquet."),
    "a.jsonl.gz": ("", " is packed (.gz); unpack it, and give the file that was in it."),
    "twice.tsv": ("prompt\tprompt\na\tb\n", " names a column twice; its columns: 'prompt', 'prompt'."),
    "long.tsv": ("prompt\na\tb\n", ": row 0 (the first is 0) has 2 fields and the header 1: put text that has tabs in"),
    "lines.json": ('{"prompt": "a"}\n{"prompt" "b"}\n', ", line 2, is not JSON: Expecting ':' delimiter at line 1"),
    "half.json": ('[{"prompt": "a\\ud835b"}]', ": the question has half a character (a surrogate without its pair) in"),
    "truth.json": ('[{"prompt": "a", "answer": "\\udc00"}]', ": the truth has half a character (a surrogate without"),
    "id.json": ('[{"prompt": "a", "id": "\\udc00"}]', ": the id has half a character (a surrogate without its pair)"),
    "twice.csv": ("prompt,answer,prompt\na,1,b\n", " names a column twice; its columns: 'prompt', 'answer', 'prompt'."),
    "long.csv": ("prompt,answer\na,1\nb, or c,2\n", ": row 1 (the first is 0) has 3 fields and the header 2: put text"),
    "short.csv": ("prompt,answer\na,1\nb\n", ": row 1 (the first is 0) has 1 fields and the header 2: put text"),
    "open.csv": ('prompt,answer\n"a,1\n', " is not CSV: unexpected end of data at line 2."),
    "a.parquet": ("prompt\n", " cannot be read as Parquet: "),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    content, message = UNREADABLE[name]
    file = tmp_path / name
    file.write_bytes(content.encode("latin-1"))
    assert refusal(file).startswith(f"{file}{message}")


@pytest.mark.parametrize(
    "name", ["data.json", "data.jsonl", "data.csv", "data.parquet", "data.txt", "a.jsonl.gz", "folder"]
)
def test_missing_file_is_named_and_not_looked_for_on_the_hub(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / name) == f"There is no data file {tmp_path / name}."


# ---- changes on disk


def replaced(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write other rows with the size and the time stamp of the old file."""
    before = file.stat()
    write(file, rows)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@each_format
@pytest.mark.parametrize("hub_layout", [False, True], ids=["file", "folder"])
def test_changed_data_is_read_anew(tmp_path: Path, suffix: str, hub_layout: bool) -> None:
    file = write(tmp_path / f"train{suffix}", with_answers("v1", "v2"))
    path = tmp_path if hub_layout else file
    assert [problem.truth for problem in read(path)] == ["v1", "v2"]
    replaced(file, with_answers("v8", "v9"))
    assert [problem.truth for problem in read(path)] == ["v8", "v9"]


# ---- built-in tasks


@pytest.mark.parametrize("name", generate.TASKS)
def test_builtin_task(name: str) -> None:
    pairs = generate.TASKS[name]()
    assert read(f"builtin:{name}") == [Problem(i, str(i), *pair) for i, pair in enumerate(pairs)]
    assert read(f"builtin:{name}", limit=3) == read(f"builtin:{name}")[:3]
    hidden = read(f"builtin:{name}", truth="")
    assert [(problem.question, problem.truth) for problem in hidden] == [(question, None) for question, _ in pairs]


def test_unknown_builtin_task_lists_those_there_are() -> None:
    assert refusal("builtin:products") == (
        "There is no built-in task 'products'; there are builtin:sums.train, builtin:sums.held_out, "
        "builtin:carries.train, builtin:carries.held_out, builtin:digits.train, builtin:digits.held_out, "
        "builtin:turkish.train, builtin:turkish.held_out."
    )


# ---- the order of training


def numbered(n: int) -> list[Problem]:
    return [Problem(i, str(i), f"question {i}", None) for i in range(n)]


def episodes(problems: Problems, count: int) -> list[list[int]]:
    """The indices that each of the first `count` episodes visits, in order."""
    steps = problems.steps_per_episode
    return [
        [problem.index for step in range(e * steps, (e + 1) * steps) for problem in problems.take(step)]
        for e in range(count)
    ]


@pytest.mark.parametrize(("n", "batch", "steps"), [(10, 3, 3), (12, 4, 3), (5, 5, 1), (7, 1, 7), (30, 8, 3)])
def test_steps_per_episode(n: int, batch: int, steps: int) -> None:
    problems = Problems(numbered(n), batch=batch, seed=0, drop_last=True)
    assert len(problems) == n
    assert problems.steps_per_episode == steps
    assert all(len(problems.take(step)) == batch for step in range(2 * steps))
    assert [problems.episode(step) for step in range(2 * steps)] == [0] * steps + [1] * steps


@pytest.mark.parametrize(("n", "visits"), [(11, 9), (12, 12)])
def test_episodes_differ_and_visit_no_question_twice(n: int, visits: int) -> None:
    visited = episodes(Problems(numbered(n), batch=3, seed=4, drop_last=True), 20)
    assert all(len(order) == len(set(order)) == visits for order in visited)
    assert len({tuple(order) for order in visited}) == 20
    assert list(range(visits)) not in visited


def test_questions_left_out_differ_between_episodes() -> None:
    visited = episodes(Problems(numbered(10), batch=4, seed=0, drop_last=True), 60)
    left_out = [frozenset(range(10)) - frozenset(order) for order in visited]
    assert all(len(out) == 2 for out in left_out)
    assert len(set(left_out)) > 15  # of 45 pairs
    assert frozenset().union(*left_out) == frozenset(range(10))


def test_step_does_not_depend_on_earlier_calls() -> None:
    problems = Problems(numbered(10), batch=3, seed=1, drop_last=True)
    forwards = [problems.take(step) for step in range(9)]
    backwards = [problems.take(step) for step in reversed(range(9))]
    assert backwards[::-1] == forwards
    assert [Problems(numbered(10), batch=3, seed=1, drop_last=True).take(step) for step in range(9)] == forwards


def test_order_is_pinned_and_the_seed_changes_it() -> None:
    """A resumed run must meet the order that it began with, also under a newer version of this package."""
    for batch in (1, 5):
        assert episodes(Problems(numbered(10), batch=batch, seed=0, drop_last=True), 2) == [
            [4, 9, 8, 7, 5, 3, 0, 1, 2, 6],
            [3, 8, 9, 4, 6, 7, 2, 0, 1, 5],
        ]
    assert (
        len({tuple(episodes(Problems(numbered(10), batch=5, seed=seed, drop_last=True), 1)[0]) for seed in range(20)})
        == 20
    )


@pytest.mark.parametrize("batch", [6, 0, -1])
def test_batch_beyond_the_data_is_refused(batch: int) -> None:
    with pytest.raises(
        InputError, match=f"has 5 questions and a step wants {batch}: set rollout.prompts between 1 and 5"
    ):
        Problems(numbered(5), batch=batch, seed=0, drop_last=True)


# ---- the paper's data


def test_aime(ttrl_data: Path) -> None:
    found = read(ttrl_data / "AIME-TTT.json")
    assert len(found) == len({problem.id for problem in found}) == 30
    answers = truths(found)
    assert answers[:6] == ["204", "025", "809", "116", "104", "294"]
    assert [answer for answer in answers if answer.startswith("0")] == ["025", "073", "045", "033", "080", "055", "023"]
    assert found[0].question.startswith("Every morning Aya goes for a $9$-kilometer-long walk")


def test_math(ttrl_data: Path) -> None:
    found = read(ttrl_data / "MATH-TTT.json")
    assert len(found) == len({problem.id for problem in found}) == 500
    answers = truths(found)
    assert answers[:3] == ["\\left( 3, \\frac{\\pi}{2} \\right)", "p - q", "\\frac{14}{3}"]
    assert found[0].id == "test/precalculus/807.json"


# ---- data as others have them


def noted(path: Path | str, **options: Any) -> tuple[list[Problem], list[str]]:
    notes: list[str] = []
    return read(path, say=notes.append, **options), notes


def test_messages_with_one_turn_of_the_user_are_questions(tmp_path: Path) -> None:
    """The parquet of verl and TRL, whose truth lies deeper."""
    turn = {"role": "user", "content": "2 + 2?"}
    rows = [{"prompt": [turn], "reward_model": {"style": "rule", "ground_truth": "4"}, "extra": {"index": 0}}] * 2
    for suffix in (".parquet", ".json"):
        found, notes = noted(write(tmp_path / f"data{suffix}", rows), truth="reward_model.ground_truth")
        assert found == [Problem(i, str(i), "2 + 2?", "4") for i in range(2)]
        assert notes == ["1 of 2 questions repeat an earlier one"]
        found, notes = noted(tmp_path / f"data{suffix}")
        assert truths(found) == ["4", "4"]
        assert (
            "the truth is the column 'reward_model.ground_truth', as there is no 'answer' (data.truth_column)" in notes
        )
    deeper = [{"extra_info": {"question": {"text": "Why?"}}, "answer": "1"}]
    assert read(write(tmp_path / "deep.json", deeper), question="extra_info.question.text")[0].question == "Why?"


def test_turns_of_a_system_and_an_assistant_are_left_out_and_said(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]
    turns = [("system", "Think."), ("user", parts), ("assistant", "4")]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    found, notes = noted(write(tmp_path / "data.json", rows))
    assert [problem.question for problem in found] == ["2 + 2?"]
    assert notes == [
        "the question is the column 'messages', as there is no 'prompt' (data.question_column)",
        "the messages' turns of the assistant are left out",
        "the messages' turns of the system are left out; prompt.system sets one",
    ]


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([], "holds turns of nobody"),
        (["a"], "holds a list of a value of type str"),
        ([{"from": "human", "value": "a"}], "holds a list of turns without role or content"),
        ([{"role": "system", "content": "a"}], "holds turns of system"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "holds turns of user, user"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "holds a turn that is not all text"),
        ([{"role": "user", "content": " "}], "is empty in row 1"),
    ],
)
def test_messages_that_are_no_question(tmp_path: Path, messages: Any, what: str) -> None:
    assert what in refusal(write(tmp_path / "data.json", [{"prompt": "fine"}, {"prompt": messages}]))


@each_format
@pytest.mark.parametrize("name", ["question", "problem", "query", "instruction"])
def test_a_usual_name_is_found_where_it_is_there_alone(tmp_path: Path, suffix: str, name: str) -> None:
    found, notes = noted(write(tmp_path / f"data{suffix}", [{name: "a?", "answer": "1"}]))
    assert found == [Problem(0, "0", "a?", "1")]
    assert notes == [f"the question is the column {name!r}, as there is no 'prompt' (data.question_column)"]


def test_other_names_are_not_guessed(tmp_path: Path) -> None:
    two = write(tmp_path / "two.json", [{"question": "a?", "problem": "b?"}])
    assert "'question' and 'problem' may be meant: Set data.question_column" in refusal(two)
    assert "no column 'soru'" in refusal(two, question="soru")
    prompt = write(tmp_path / "prompt.json", [{"prompt": "a?", "problem": "b?", "solution": "1", "label": "2"}])
    assert noted(prompt) == ([Problem(0, "0", "a?", None)], [])


def test_texts_alone(tmp_path: Path) -> None:
    texts = ["What is 2 + 2?", "Kaç elma?"]
    expected = [Problem(i, str(i), text, None) for i, text in enumerate(texts)]
    for file in (
        text_file(tmp_path / "a.txt", "What is 2 + 2?\r\n\n  Kaç elma?\n"),
        text_file(tmp_path / "a.json", json.dumps(texts)),
        text_file(tmp_path / "a.jsonl", "".join(json.dumps(text) + "\n" for text in texts)),
        text_file(tmp_path / "b.json", json.dumps({"version": 1, "data": texts})),
    ):
        assert read(file) == read(file, question="problem") == expected


def test_tabs_between_columns(tmp_path: Path) -> None:
    file = text_file(tmp_path / "a.tsv", 'prompt\tanswer\nOne, two?\t025\n"a\tb"\t3\n')
    assert read(file) == [Problem(0, "0", "One, two?", "025"), Problem(1, "1", "a\tb", "3")]


def test_json_in_any_of_its_shapes_under_either_name(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    shapes = {"lines": lines, "pretty": json.dumps(ROWS, indent=1), "flat": json.dumps(ROWS)}
    shapes |= {"data": json.dumps({"data": ROWS}), "pretty data": json.dumps({"data": ROWS}, indent=1)}
    for shape, text in shapes.items():
        for suffix in (".json", ".jsonl"):
            assert read(text_file(tmp_path / f"data{suffix}", text)) == EXPECTED, (shape, suffix)
    assert read(text_file(tmp_path / "one.jsonl", json.dumps(ROWS[0]))) == EXPECTED[:1]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("https://example.com/a.jsonl", "is the address https://example.com/a.jsonl, which is not read; download it"),
        ("hf://datasets/a/b/c.parquet", "give a hub data set by its name, OWNER/NAME"),
        ("data/*.parquet", "is the pattern data/*.parquet; put the files into a folder of their own"),
    ],
)
def test_what_is_no_path_has_its_cure(path: str, words: str) -> None:
    assert words in refusal(path)


def test_subsets_of_a_folder_in_the_hubs_layout(tmp_path: Path) -> None:
    for name in ("main", "socratic"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train-0.parquet", [{"prompt": f"{name}?"}])
    subsets = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("main", "socratic"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{subsets}---\n")
    assert [problem.question for problem in read(tmp_path, subset="socratic")] == ["socratic?"]
    assert "has several subsets; set data.subset to one of main, socratic." in refusal(tmp_path)
    assert "has no subset 'x'; set data.subset to one of main, socratic." in refusal(tmp_path, subset="x")


def test_ids_that_name_no_question_apart_are_said(tmp_path: Path) -> None:
    rows = [{"id": "x", "prompt": f"{i}?"} for i in range(2)]
    found, notes = noted(write(tmp_path / "data.json", rows))
    assert [problem.id for problem in found] == ["0", "1"]
    assert notes == ["the column 'id' does not name each question apart; they are numbered instead"]


def test_the_last_step_of_an_episode_has_what_is_left() -> None:
    whole = Problems(numbered(10), batch=4, seed=0, drop_last=True)
    problems = Problems(numbered(10), batch=4, seed=0, drop_last=False)
    assert problems.steps_per_episode == 3 and [len(problems.take(step)) for step in range(6)] == [4, 4, 2] * 2
    assert all(sorted(order) == list(range(10)) for order in episodes(problems, 5))
    assert [problems.take(step) for step in (0, 1, 3, 4)] == [whole.take(step) for step in range(4)]
    assert Problems(numbered(12), batch=4, seed=0, drop_last=False).steps_per_episode == 3


def test_orders_of_questions():
    """Hand-worked: as given, and by shares of votes, of which equal ones stay in the order of the data."""
    given = Problems(numbered(5), batch=2, seed=0, drop_last=False, order="given")
    assert [[p.index for p in given.take(step)] for step in range(5)] == [[0, 1], [2, 3], [4], [0, 1], [2, 3]]
    shared = Problems(numbered(5), batch=2, seed=0, drop_last=True, order="vote_share")
    with pytest.raises(ValueError, match="needs the shares"):
        shared.take(0)
    easy = shared.by_share([0.25, 0.5, 1.0, 0.5, 0.0])
    assert [[p.index for p in easy.take(step)] for step in range(3)] == [[2, 1], [3, 0], [2, 1]]
    with pytest.raises(ValueError, match="needs the shares"):
        shared.take(0)  # which is as it was

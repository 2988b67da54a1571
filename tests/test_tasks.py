"""Semantics: which questions, columns and extraction an entry of eval.tasks means, and which entries are refused."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import default
from ttrl_jax.data.problems import truths
from ttrl_jax.errors import InputError
from ttrl_jax.tasks.sets import QuestionSet, read_questions, with_tasks
from ttrl_jax.tasks.voting import cast_votes, majority_voting_reward


def read_sets(config: ConfigDict) -> tuple[QuestionSet, ...]:
    return with_tasks(read_questions(config), config)


@pytest.fixture
def config(tmp_path: Path) -> ConfigDict:
    """A config whose columns and extraction are not those of the files in configs/."""
    (tmp_path / "own.jsonl").write_text('{"q": "one?", "a": "1", "prompt": "uno?", "answer": "I"}\n' * 3)
    c = default.get_config()
    c.data.path = str(tmp_path / "own.jsonl")
    c.data.question_column, c.data.truth_column, c.data.limit = "q", "a", 2
    c.reward.extract = ("last_number",)
    return c


def other(tmp_path: Path) -> str:
    rows = [{"q": f"q{i}", "a": f"a{i}", "prompt": f"p{i}", "answer": f"b{i}"} for i in range(3)]
    (tmp_path / "a=b.json").write_text(json.dumps(rows))  # a = in the path is the path's
    return str(tmp_path / "a=b.json")


def test_without_entries_there_are_the_configs_own_questions(config: ConfigDict):
    [task] = read_sets(config)
    assert (task.name, task.path, task.truth_column) == ("data", config.data.path, "a")
    assert [problem.question for problem in task.items] == ["one?"] * 2 and truths(task.items) == ["1", "1"]


def test_a_label_takes_the_configs_own_columns_limit_and_extraction(config: ConfigDict, tmp_path: Path):
    config.eval.tasks = (f"held-out_2={other(tmp_path)}",)
    _, task = read_sets(config)
    assert (task.name, task.path) == ("held-out_2", str(tmp_path / "a=b.json"))
    assert [problem.question for problem in task.items] == ["q0", "q1"] and truths(task.items) == ["a0", "a1"]
    assert task.task.extract("so 7").text == "7" and task.task.extract(r"\boxed{x}") is None


def test_the_name_of_a_config_takes_its_columns_limit_and_extraction(config: ConfigDict, tmp_path: Path):
    config.eval.tasks = (f"aime={other(tmp_path)}",)
    _, task = read_sets(config)
    assert (task.name, task.path) == ("aime", str(tmp_path / "a=b.json"))
    assert [problem.question for problem in task.items] == ["p0", "p1", "p2"]
    assert truths(task.items) == ["b0", "b1", "b2"]
    assert task.task.extract("so 7") is None and task.task.extract(r"\boxed{x}").text == "x"


def test_the_name_of_a_config_alone_takes_its_path_too_and_the_order_stays(config: ConfigDict, tmp_path: Path):
    config.eval.tasks = (f"b={other(tmp_path)}", "quickstart", f"a={other(tmp_path)}")
    tasks = read_sets(config)
    assert [task.name for task in tasks] == ["data", "b", "quickstart", "a"]
    assert tasks[2].path == "builtin:carries.train" and len(tasks[2].items) == 64


def test_the_format_and_the_locale_go_with_the_extraction(config: ConfigDict, tmp_path: Path):
    """A label reads as the config does; the name of another config reads as that one does."""
    config.reward.format, config.reward.locale = ("mantık", "cevap"), "tr"
    config.reward.extract = ("tag_strict", "tag:cevap")
    config.eval.tasks = (f"held-out={other(tmp_path)}", f"aime={other(tmp_path)}")
    data, held_out, aime = read_sets(config)
    whole = "<mantık>bir</mantık><cevap>1.234,5</cevap>"
    for task in (data, held_out):
        assert task.task.extract(whole).text == task.task.extract("<cevap>1.234,5</cevap>").text == "1234.5"
        assert task.task.in_format(whole) and not task.task.in_format("<cevap>1.234,5</cevap>")
    assert aime.task.extract(whole) is None and aime.task.extract(r"\boxed{1,234.5}").text == "1,234.5"
    assert aime.task.in_format is None


READ = {  # response -> what the trained, the strict, the flexible and the last number's reading find in it
    "<mantık>3 * 4</mantık> <cevap>12</cevap>": ("12", "12", "12", "12"),
    "<mantık>10 + 2,5</mantık> <cevap>12,5</cevap>": ("12.5", "12.5", "12.5", "12.5"),
    "<mantık>iki buçuk ve on</mantık> <cevap>12.5</cevap>": (None, None, None, None),  # no Turkish number
    "<mantık>5 * 250</mantık> <cevap>1.250</cevap>": ("1250", "1250", "1250", "1250"),
    "<mantık>5 * 250</mantık> <cevap>1250</cevap>": ("1250", "1250", "1250", "1250"),
    "Buldum: <cevap>12</cevap>": ("12", None, "12", "12"),
    "<mantık>3 * 4</mantık> <cevap>12</cevap> lira": ("12", None, "12", "12"),
    "<mantık>3 * 4</mantık> <cevap>12 TL</cevap>": (None, None, "12 TL", "12"),
    "<mantık>3 * 4 = 12</mantık> <cevap>on iki</cevap>": (None, None, "on iki", "12"),
    "<mantık>3 * 4 = 12</mantık> <cevap></cevap>": (None, None, None, "12"),
    "Sonuç 1.250 liradır.": (None, None, None, "1250"),
    "Sonuç 12,5": (None, None, None, "12.5"),
    "Sonuç 12.5": (None, None, None, None),
    "<cevap>12.5</cevap>, yani 13": (None, None, None, None),  # the tag decides
    "<cevap>7</cevap>, yani 8": ("7", None, "7", "7"),
    "Bilmiyorum.": (None, None, None, None),
}


@pytest.mark.parametrize(("response", "found"), READ.items(), ids=READ)
def test_the_readings_of_a_format(config: ConfigDict, response: str, found: tuple[str | None, ...]):
    """Hand-worked: what is trained on, and what is measured besides, in Turkish tags with Turkish numbers."""
    config.reward.extract, config.reward.format = ("number:cevap",), ("mantık", "cevap")
    config.reward.locale = "tr"
    [task] = read_sets(config)
    assert list(task.task.readings) == ["strict", "flexible", "last_number"]
    read = [reader(response) for reader in (task.task.extract, *task.task.readings.values())]
    assert tuple(answer and answer.text for answer in read) == found


def test_without_a_format_there_is_one_reading(config: ConfigDict):
    [task] = read_sets(config)
    assert task.task.readings == {} and task.task.in_format is None


def test_a_choice_is_among_what_its_question_offers(config: ConfigDict):
    config.reward.extract = ("choice",)
    [task] = read_sets(config)
    texts = [["The answer is (B).", "The answer is (E)."]] * 3
    questions = ["Which?\nA. 1\nB. 2", "Which?\n" + "\n".join(f"{letter}. 1" for letter in "ABCDE"), "Which?"]
    found = [ballot.classes for ballot in cast_votes(task.task, texts, questions=questions)]
    assert found == [(0, None), (0, 1), (0, 1)]
    assert [ballot.classes for ballot in cast_votes(task.task, texts)] == [(0, 1)] * 3
    rewards = [majority_voting_reward(task.task, [*texts[0], "Answer: (E)"], question=q) for q in questions]
    assert rewards == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]


def test_the_thoughts_of_a_model_that_thinks_are_not_in_the_format(config: ConfigDict):
    config.prompt.thinking, config.reward.format = True, ("answer",)
    [task] = read_sets(config)
    assert task.task.in_format("so</think> <answer>1</answer>") and not task.task.in_format("<answer>1</answer>")
    config.reward.format = ("think", "answer")
    with pytest.raises(InputError, match=r"reward\.format=\('think', 'answer'\) cannot hold.*leave 'think' out"):
        read_sets(config)
    config.prompt.thinking = False
    [task] = read_sets(config)
    assert task.task.in_format("<think>so</think> <answer>1</answer>")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (("nothing",), ("'nothing'", "no path", "configs/nothing.py")),
        (("nothing=",), ("'nothing='", "no path")),
        (("aime=",), ("'aime='", "no path")),
        (("default",), ("'default'", "configs/default.py names none")),
        (("data=x.json",), ("'data=x.json'", "data.path")),
        (("a/b=x.json",), ("'a/b=x.json'", "letters")),
        (("../configs/aime",), ("'../configs/aime'", "letters")),
        (("=x.json",), ("'=x.json'", "NAME=PATH")),
        (("",), ("''", "NAME=PATH")),
        (("a b=x.json",), ("'a b=x.json'", "letters")),
        (("a=x.json", "a=y.json"), ("'a' twice",)),
        (("quickstart", "quickstart=x.json"), ("'quickstart' twice",)),
        ((3,), ("NAME=PATH", "3")),
        (("a=/nowhere.json",), ("/nowhere.json",)),
        (("quickstart=builtin:nothing",), ("nothing", "sums.train")),
    ],
)
def test_entries_that_cannot_be_used(config: ConfigDict, entries: tuple, words: tuple[str, ...]):
    config.eval.tasks = entries
    with pytest.raises(InputError) as error:
        read_sets(config)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)

"""Semantics: the questions of a report, their votes over time, and the formulas in their texts."""

import copy
from pathlib import Path

import pytest
from reports import ballot, generation, made_run, numbers, row

from ttrl_jax.report import data, fit, formulas, rollouts
from ttrl_jax.run.metrics import write_jsonl


def read(run: Path) -> dict[str, dict]:
    return {question["id"]: question for question in rollouts.read_questions(data.read_run(run, "run"))}


def test_flipped_and_wrong(tmp_path):
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)})
    steps = [
        [row("a", "9", right=0), row("b", "8", right=None), row("c", "9", right=0)],
        [row("a", "9.0", right=0), row("b", "9", right=0), row("c", "7", right=None)],
    ]
    for step, rows in enumerate(steps):
        write_jsonl(run / "rollouts" / f"train_{step:06}.jsonl", rows)
    found = read(run)
    flags = ("flips", "wrong", "became_right", "became_wrong")
    assert {name: tuple(each[flag] for flag in flags) for name, each in found.items()} == {
        "a": (0, False, False, False),  # 9 and 9.0 are one label
        "b": (1, False, True, False),
        "c": (1, True, False, True),
    }
    assert [visit["right"] for visit in found["b"]["visits"]] == [False, True]
    assert [visit["hit_ratio"] for visit in found["b"]["visits"]] == [0.0, None]  # all agree, and all are wrong
    assert [sample[6] for sample in found["c"]["visits"][1]["samples"]] == [False] * 4


def test_wrong_is_what_was_rewarded_and_the_majority_stands_beside_it(tmp_path):
    """A question whose control's label is wrong, though the votes are right; and one of a run without `majority`."""
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)}, label="random")
    votes = row("a", "9", right=0, count=3)
    votes["samples"] = [*votes["samples"], generation("or so", "7", 1, 0.0)]
    rows = [votes | {"counts": [3, 1], "label": "7", "majority": "9"}, row("old", "9", right=0)]
    write_jsonl(run / "rollouts" / "train_000000.jsonl", rows)
    write_jsonl(run / "rollouts" / "train_000001.jsonl", [rows[0] | {"label": "9"}, rows[0] | {"majority": 7}])
    read_run = data.read_run(run, "run")
    mixed, old = rollouts.read_questions(read_run)
    assert read_run.notes[-1].startswith("1 of the rows of rollouts/train_000001.jsonl cannot be read")
    shown = ("label", "share", "majority", "majority_share", "right")
    assert [tuple(visit[name] for name in shown) for visit in mixed["visits"]] == [
        ("7", 0.25, "9", 0.75, False),
        ("9", 0.75, "9", 0.75, True),
    ]
    assert [visit["hit_ratio"] for visit in mixed["visits"]] == [0.0, None]  # three 9 get 0, the 7 gets 1: all wrong
    assert mixed["flips"] == 0 and not mixed["wrong"]  # the votes have not changed; the last label is right
    assert [tuple(visit[name] for name in shown) for visit in old["visits"]] == [("9", 1.0, "9", 1.0, True)]


def test_a_winner_that_was_given_no_label_is_not_wrong(tmp_path):
    """The rule held its label back; a question that nobody answered has a wrong one, as ever."""
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)})
    silent = row("silent", "9", right=None) | {"label": None, "majority": None, "counts": []}
    silent["samples"] = [generation("er", None, None, 0.0)] * 4
    held = row("held", "8", right=None) | {"label": None, "majority": "8"}
    write_jsonl(run / "rollouts" / "train_000000.jsonl", [held, silent])
    found = read(run)
    shown = ("label", "share", "majority", "majority_share", "right", "majority_right")
    assert [found["held"]["visits"][0][name] for name in shown] == [None, 0.0, "8", 1.0, None, False]
    assert not found["held"]["wrong"] and found["silent"]["wrong"]


def test_the_share_of_every_visit(tmp_path):
    """votes.jsonl has all visits, by number; generations of two of them say what is right of the rest."""
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)}, questions=2)
    first, second = row("a", "9", right=0), row("b", "1/2", right=0) | {"truth": "0.5"}
    write_jsonl(run / "rollouts" / "eval_data_000000.jsonl", [first, second])
    write_jsonl(run / "rollouts" / "train_000000.jsonl", [second, first])
    labels = [("1/2", None), (None, True), ("0.50", True), ("3", True)]
    votes = [
        {
            "step": step,
            "question": 1,
            "label": label,
            "share": share / 8,
            "flipped": flipped,
            "no_answer": step + 2,
            "length": 3.0,
        }
        for step, ((label, flipped), share) in enumerate(zip(labels, (2, 0, 4, 6), strict=True))
    ]
    write_jsonl(run / "votes.jsonl", [*votes, votes[0] | {"question": 2}, votes[0] | {"label": 1}])
    read_run = data.read_run(run, "run")
    found = rollouts.read_questions(read_run)
    assert read_run.notes == ["1 of the lines of votes.jsonl cannot be read and are left out"]
    assert [(question["set"], question["id"]) for question in found] == [
        ("training", "a"), ("training", "b"), ("data", "a"), ("data", "b"),
    ]  # fmt: skip
    shown = found[1]
    assert shown["history"] == [
        [0, "1/2", 0.25, True, None],
        [1, None, 0.0, False, True],
        [2, "0.50", 0.5, True, True],
        [3, "3", 0.75, False, True],
    ]
    assert (shown["flips"], shown["share"], shown["change"], shown["became_wrong"]) == (3, 0.75, 0.5, True)
    write_jsonl(run / "rollouts" / "train_000000.jsonl", [first])
    unseen = rollouts.read_questions(data.read_run(run, "run"))[1]  # of which no step wrote the generations down
    assert (unseen["id"], unseen["truth"], unseen["visits"], unseen["wrong"]) == ("b", "0.5", [], True)
    assert unseen["history"] == shown["history"] and unseen["silent"] == 5
    write_jsonl(run / "rollouts" / "train_000000.jsonl", [second, first])
    (run / "config.json").write_text((run / "config.json").read_text().replace('"count": 2', '"count": 3'))
    assert len(read(run)["b"]["history"]) == 1  # which question has which number is not known


def test_a_ballot_lists_answers_by_votes():
    made = ballot("a", 3, votes=60)
    made["samples"][-1] |= {"answer": None, "class": None, "in_format": False}
    made["counts"].pop()
    visit = rollouts.visit(made, 5)
    assert visit["ballot"][0] == [0, "0", 3, True] and visit["ballot"][1] == [1, "1", 1, False]
    assert len(visit["ballot"]) == 40 and visit["others"] == [17, 17]  # 57 answers, 59 votes
    assert (visit["no_answer"], visit["unformed"], visit["votes"], visit["length"]) == (1, 1, 60, 3.0)


def test_fit_changes_nothing_that_it_is_given(tmp_path):
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)})
    write_jsonl(run / "rollouts" / "train_000000.jsonl", [row("a", "9", right=0)])
    questions = list(read(run).values())
    before = copy.deepcopy(questions)
    shown, notes = fit.fit(questions)
    assert questions == before == shown and notes == []


def test_long_texts_lose_their_middle():
    assert "[... 1000 characters left out ...]" in rollouts.short("<" * 9_000)


def test_formulas_are_found_where_they_are_marked():
    text = r"Of $x^2$, \(a_1\), \[b\] and $$c$$ it is \boxed{\frac{1}{2}}; it costs $5 and $7, or \boxed{3"
    assert formulas.in_text(text) == ["$x^2$", r"\(a_1\)", r"\[b\]", "$$c$$", r"\boxed{\frac{1}{2}}"]


def test_a_formula_by_hand():
    half = ["mfrac", {}, ["mrow", {}, ["mn", {}, "1"]], ["mrow", {}, ["mn", {}, "2"]]]
    for source in (r"\frac{1}{2}", r"$\frac{1}{2}$", r"\(\frac{1}{2}\)"):
        assert formulas.mathml(source) == ["math", {"display": "inline"}, ["mrow", {}, half]]
    assert formulas.mathml(r"\[\frac{1}{2}\]")[1] == {"display": "block"}
    spaces = [formulas.mathml(f"$x{space} y$")[2][3] for space in (r"\quad", r"\hspace{9999em}")]
    assert spaces == [["mspace", {"width": "1em"}], ["mspace", {}]]


@pytest.mark.parametrize(
    "source",
    ["85", "12 apples", r"\nosuchcommand{3}", r"\frac\frac\frac", "{" * 3000 + "^", "x_1_2", r"\left(x^2", "x^" * 1500],
)
def test_what_cannot_be_converted_stays_as_it_is(source):
    assert formulas.mathml(source) is None


@pytest.mark.parametrize(
    "source",
    [
        r"\text{<img src=x onerror=alert(1)>}",
        r"\href{javascript:alert(1)}{x}",
        r"\style{position:fixed}{x}",
        r"\class{a}{x}",
    ],
)
def test_a_formula_brings_no_markup(source):
    """Names are from the lists; whatever a text holds is a text."""

    def check(element: list) -> None:
        tag, attributes, *children = element
        assert tag in formulas._TAGS and attributes.keys() <= formulas._ATTRIBUTES | {"width"}
        for child in children:
            assert isinstance(child, str) or check(child) is None

    found = formulas.mathml(source)
    assert found is not None
    check(found)


def test_formulas_stop_where_the_page_is_full():
    texts, answers = [f"${name}^2$" for name in "abcdef"], ["x^3", "85"]
    every = formulas.convert(texts, answers, budget=10_000, size=fit.size)
    assert list(every) == ["x^3", *texts]
    few = formulas.convert(texts, answers, budget=fit.size({"x^3": every["x^3"]}) + 5, size=fit.size)
    assert list(few) == ["x^3"]

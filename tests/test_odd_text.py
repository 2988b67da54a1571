"""Semantics: what a comparison raises on odd text is undecided, counted and noted, and ends nothing."""

import pytest

from ttrl_jax.reward import equivalence
from ttrl_jax.reward.equivalence import cluster, key, same
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.symbolic import Undecided, question
from ttrl_jax.reward.vote import classes_of, vote

ODD = "odd"
KINDS = [ValueError, IndexError, RecursionError, TypeError, ZeroDivisionError]


@pytest.fixture(params=KINDS)
def fragile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that fails at one text, beside another one."""
    whole = equivalence._cluster

    def compare(answers):
        if {Answer(ODD)} < {answer for answer in answers if answer is not None}:
            raise request.param("of a kind nobody thought of")
        return whole(answers)

    monkeypatch.setattr(equivalence, "_cluster", compare)


def answers(*texts: str | None) -> list[Answer | None]:
    return [None if text is None else Answer(text) for text in texts]


@pytest.mark.usefixtures("fragile")
def test_the_other_votes_count_as_ever():
    ballot = vote(answers("1/2", ODD, "0.5", None, r"\,", "3", ODD, r"\frac12"))
    assert ballot.classes == (0, 1, 0, None, None, 2, 1, 0) and ballot.counts == (3, 2, 1)
    with question() as asked:
        assert cluster(answers("1/2", ODD, "3")).undecided == len(asked.undecided) == 2
    assert ballot.undecided == len(ballot.pairs) == 4  # of the odd one with each of the other texts
    assert Undecided("1/2", ODD, "undecided") in ballot.pairs
    with pytest.raises(tuple(KINDS)):
        equivalence._cluster(answers("1/2", ODD))


@pytest.mark.usefixtures("fragile")
def test_two_answers():
    with question() as asked:
        assert not same(Answer("3"), Answer(ODD))
        assert same(Answer(ODD), Answer(ODD)) and same(Answer("3"), Answer("3.0"))
    assert asked.undecided == [Undecided("3", ODD, "undecided")]
    assert classes_of([vote(answers("3", ODD))], answers("3.0")) == [0]
    assert classes_of([vote(answers("4", ODD))], answers("3.0")) == [None]


def test_a_text_that_cannot_be_read_is_a_class_of_its_own(monkeypatch: pytest.MonkeyPatch):
    whole = equivalence._form

    def read(text):
        if text == ODD:
            raise ValueError("of a kind nobody thought of")
        return whole(text)

    monkeypatch.setattr(equivalence, "_form", read)
    found = cluster(answers("1/2", ODD, None, "0.5", ODD, ""))
    assert found == equivalence.Clusters((0, 1, None, 0, 1, None), 2)
    assert key(Answer("0.5")) == "n:1/2"


def test_what_is_no_odd_text_is_raised(monkeypatch: pytest.MonkeyPatch):
    def failing(*_):
        raise RuntimeError("the worker that compares answers does not start")

    monkeypatch.setattr(equivalence, "_cluster", failing)
    with pytest.raises(RuntimeError):
        vote(answers("1", "2"))
    with pytest.raises(RuntimeError):
        same(Answer("1"), Answer("2"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\{\text{red}, \text{blue}\}", r"\{\text{red}, \text{green}\}"),
        (r"\{\text{HHH}, \text{HTT}\}", r"\{\text{TTT}, \text{THH}\}"),
        ("6 pm, 7 pm", "6 pm, 8 pm"),
        (r"\text{6:00 PM and 7:00 PM}", r"\text{6:00 PM and 8:00 PM}"),
        ("101_2, 11_2", "110_2, 11_2"),
        (r"\text{Yes} \cup \text{No}", r"\text{Maybe} \cup \text{No}"),
    ],
)
def test_lists_of_what_is_no_formula_are_two_classes(one: str, other: str):
    assert vote(answers(one, other, one)).classes == (0, 1, 0)
    assert not same(Answer(one), Answer(other))

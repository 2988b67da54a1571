"""Semantics: what a comparison raises on odd text is undecided, counted and noted, and ends nothing."""

import pytest

from ttrl_jax.reward import equivalence, guard
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.symbolic import Undecided, question
from ttrl_jax.reward.vote import classes_of, vote

ODD = "odd"


@pytest.fixture(params=[ValueError, IndexError, RecursionError, TypeError, ZeroDivisionError])
def fragile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that fails at one text, beside another one."""
    whole = {"cluster": equivalence.cluster, "same": equivalence.same}

    def failing(name: str):
        def compare(*given):
            answers = given[0] if name == "cluster" else given
            if {Answer(ODD)} < {answer for answer in answers if answer is not None}:
                raise request.param("of a kind nobody thought of")
            return whole[name](*given)

        return compare

    for name in whole:
        monkeypatch.setattr(equivalence, name, failing(name))


def answers(*texts: str | None) -> list[Answer | None]:
    return [None if text is None else Answer(text) for text in texts]


@pytest.mark.usefixtures("fragile")
def test_the_other_votes_count_as_ever():
    ballot = vote(answers("1/2", ODD, "0.5", None, r"\,", "3", ODD, r"\frac12"))
    assert ballot.classes == (0, 1, 0, None, None, 2, 1, 0) and ballot.counts == (3, 2, 1)
    with question() as asked:
        assert guard.cluster(answers("1/2", ODD, "3")).undecided == len(asked.undecided) == 2
    assert ballot.undecided == len(ballot.pairs) == 4  # of the odd one with each of the other texts
    assert Undecided("1/2", ODD, "undecided") in ballot.pairs
    with pytest.raises((ValueError, IndexError, RecursionError, TypeError, ZeroDivisionError)):
        equivalence.cluster(answers("1/2", ODD))


@pytest.mark.usefixtures("fragile")
def test_two_answers():
    with question() as asked:
        assert not guard.same(Answer("3"), Answer(ODD))
        assert guard.same(Answer(ODD), Answer(ODD)) and guard.same(Answer("3"), Answer("3.0"))
    assert asked.undecided == [Undecided("3", ODD, "undecided")]
    assert classes_of([vote(answers("3", ODD))], answers("3.0")) == [0]
    assert classes_of([vote(answers("4", ODD))], answers("3.0")) == [None]


def test_what_is_no_odd_text_is_raised(monkeypatch: pytest.MonkeyPatch):
    def failing(*_):
        raise RuntimeError("the worker that compares answers does not start")

    monkeypatch.setattr(equivalence, "cluster", failing)
    monkeypatch.setattr(equivalence, "same", failing)
    with pytest.raises(RuntimeError):
        vote(answers("1", "2"))
    with pytest.raises(RuntimeError):
        guard.same(Answer("1"), Answer("2"))


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
    assert not guard.same(Answer(one), Answer(other))

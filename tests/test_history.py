"""Hand-worked: what is remembered of a question's votes, and when a label has flipped."""

import json

import numpy as np
import pytest

from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.history import History, Visit
from ttrl_jax.reward.vote import Ballot, vote


def ballot(*texts: str | None) -> Ballot:
    return vote([None if text is None else Answer(text) for text in texts])


def visited(history: History, step: int, *asked: tuple[int, Ballot]) -> History:
    """The history with a step's visits: numbers of questions, and their ballots, whose first leader wins."""
    ids, ballots = [i for i, _ in asked], [b for _, b in asked]
    lengths = np.tile(np.arange(len(ballots[0].classes)), (len(ids), 1))
    return history.add(history.visits_of(step, ids, ballots, [b.label for b in ballots], lengths))


def test_a_visit_by_hand() -> None:
    [visit] = visited(History(), 3, (7, ballot("1/2", "4", "0.5", "6", None, "4", r"\frac12", None))).visits
    assert visit == Visit(
        step=3,
        question=7,
        label="1/2",
        share=3 / 8,
        runner_up=2 / 8,
        counts=(3, 2, 1),
        no_answer=2,
        length=3.5,
        flipped=None,
    )


def test_a_drawn_winner_has_its_own_share() -> None:
    tied = [ballot("1", "2", "2", "1", "3")]
    [visit] = History().visits_of(0, [0], tied, [1], np.ones((1, 5)))
    assert (visit.label, visit.share, visit.runner_up) == ("2", 2 / 5, 2 / 5)
    nobody = [ballot(None, None)]
    [visit] = History().visits_of(0, [0], nobody, [None], np.ones((1, 2)))
    assert (visit.label, visit.share, visit.runner_up, visit.no_answer) == (None, 0, 0, 2)


def test_flips_are_told_by_what_labels_mean() -> None:
    """Of each question since its own last visit: the same in another spelling, another one, lost, still none, new."""
    before = visited(
        History(), 0, *enumerate([ballot("1/2"), ballot("3"), ballot("4"), ballot(None), ballot(r"\frac{1}{\sqrt2-1}")])
    )
    now = [ballot("0.50"), ballot("5"), ballot(None), ballot(None), ballot(r"\sqrt2+1"), ballot("1")]
    after = visited(before, 1, *enumerate(now))
    assert [visit.flipped for visit in after.visits[:5]] == [None] * 5
    assert [visit.flipped for visit in after.visits[5:]] == [False, True, True, False, False, None]
    assert [visit.step for visit in after.of_question[2]] == [0, 1] and len(after.of_question[5]) == 1
    assert before.visits == after.visits[:5], "a history never changes"
    back = visited(after, 2, (2, ballot("9")))
    assert back.visits[-1].flipped is True


def test_a_history_comes_back_from_json() -> None:
    history = visited(visited(History(), 0, (4, ballot("1", "2", None))), 1, (4, ballot("2", "2", None)))
    assert History.of(json.loads(json.dumps(history.rows()))) == history
    assert History.of([]) == History()


def test_sameness_is_the_tasks() -> None:
    first = visited(History(), 0, (0, ballot("1")))
    for answer in (True, False):
        same = lambda one, other, answer=answer: answer  # noqa: E731
        [visit] = first.visits_of(1, [0], [ballot("2")], [0], np.ones((1, 1)), same=same)
        assert visit.flipped is not answer


def test_every_question_needs_its_ballot() -> None:
    with pytest.raises(ValueError):
        History().visits_of(0, [0, 1], [ballot("1")], [0], np.ones((1, 1)))

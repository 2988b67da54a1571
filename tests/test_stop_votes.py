"""Invariance and semantics: a run whose votes stop is the same on any slots, and what it measures is of the votes that
count."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from configs import quickstart_sums
from ttrl_jax import library as ttrl
from ttrl_jax.check import check, measured_samples
from ttrl_jax.errors import InputError
from ttrl_jax.measure.evaluation import of_stopped
from ttrl_jax.measure.generations import generations
from ttrl_jax.measure.step import Seen, line_of, speed, step_metrics
from ttrl_jax.records import Rollouts
from ttrl_jax.reward.audit import audit
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.judge import Evidence
from ttrl_jax.reward.score import answered, score, vote_share
from ttrl_jax.reward.vote import vote
from ttrl_jax.tasks.voting import in_format

SMALL = {
    "episodes": 1, "data.limit": 8, "rollout.prompts": 4, "rollout.votes": 16, "train.samples": 4,
    "train.minibatch_prompts": 4, "train.micro_tokens": 384, "eval.samples": 6, "eval.tasks": (),
    "rollout.stop_votes": 0.6, "rollout.temperature": 0.7,
}  # fmt: skip


def small_config(**changes):
    config = copy.deepcopy(quickstart_sums.get_config())
    config.update_from_flattened_dict(SMALL | changes)
    return config


def trained(session, history):
    """One step, as train takes it: the session after it, the history, the step as it was seen, and its metrics."""
    config, task, step = session.config, session.task, session.step
    batch, judge = session.problems.take(step), ttrl.judge_of(config, task)
    ids, prompts = [problem.index for problem in batch], ttrl.encode(session, batch)
    stop = ttrl.stop_of(task, batch, error=config.rollout.stop_votes, least=config.train.samples)
    drawn = {"votes": config.rollout.votes, "sampling": session.sampling, "stop": stop}
    rollouts = ttrl.sample(session, prompts, ttrl.step_key(session, step), **drawn)
    ballots = ttrl.cast_votes(task, rollouts.texts, questions=[problem.question for problem in batch])
    evidence = ttrl.evidence_of(session, prompts, rollouts, judge)
    verdict = judge(ballots, evidence, history, ttrl.Draw(config.seed, step, ids))
    chosen = ttrl.select(verdict.rewards, samples=config.train.samples)
    rows = ttrl.train_batch(prompts, rollouts, chosen)
    session, advantages, credited = ttrl.credit(session, rows, verdict.take(chosen))
    session, learned = ttrl.update(session, rows, {"advantages": advantages})
    visits = history.visits_of(step, ids, ballots, verdict.winners, rollouts.lengths, same=judge.same)
    seen = Seen(batch, prompts, rollouts, ballots, evidence, verdict, chosen, visits)
    seconds = {"sample": 1.0, "vote": 1.0, "update": 1.0}
    return session, history.add(visits), seen, step_metrics(session, seen, credited | {"update": learned}, seconds)


def steps(config, count=2):
    session, history, found = ttrl.open_session(ttrl.read_inputs(config)), ttrl.History(), []
    for _ in range(count):
        session, history, seen, metrics = trained(session, history)
        found.append((seen, metrics))
    ttrl.close(session)
    return history, found


@pytest.fixture(scope="module")
def stopped():
    return steps(small_config())


def test_rows_change_nothing(stopped):
    """Invariance: with 8 slots most votes wait, and with 512 none does."""
    history, found = stopped
    others, again = steps(small_config(**{"rollout.rows": 8}))
    assert others == history
    for (one, _), (other, _) in zip(found, again, strict=True):
        for name in ("counted", "tokens", "lengths", "truncated"):
            np.testing.assert_array_equal(vars(one.rollouts)[name], vars(other.rollouts)[name])
        assert one.ballots == other.ballots and one.verdict.labels == other.verdict.labels
        np.testing.assert_array_equal(one.verdict.rewards, other.verdict.rewards)


def test_the_votes_that_count_are_the_first_of_all(stopped):
    """The first step of a run whose votes do not stop has the same votes, and more."""
    (every, without), *_ = steps(small_config(**{"rollout.stop_votes": 0.0}), count=1)[1]
    seen, metrics = stopped[1][0]
    counts = seen.rollouts.counted.sum(1)
    assert counts.min() < counts.max() <= 16 and counts.min() >= 4
    assert seen.rollouts.lengths.shape == seen.verdict.rewards.shape == (4, counts.max())
    for p, count in enumerate(counts):
        assert len(seen.rollouts.texts[p]) == len(seen.ballots[p].classes) == count
        assert seen.rollouts.texts[p] == every.rollouts.texts[p][:count]
        np.testing.assert_array_equal(seen.rollouts.tokens[p, :count], every.rollouts.tokens[p, :count])
    np.testing.assert_array_equal(seen.chosen, every.chosen)  # the first four
    assert metrics["vote/drawn_share"] == counts.sum() / 64
    assert metrics["audit/pass@4"] == without["audit/pass@4"]
    assert "audit/pass@16" in without and not {f"audit/pass@{n}" for n in range(5, 17)} & metrics.keys()
    assert not {"vote/drawn_share", "speed/thrown_share"} & without.keys()
    assert "votes drawn 0." in line_of(metrics) and "votes drawn" not in line_of(without)
    lengths = seen.rollouts.lengths[seen.rollouts.counted]
    assert metrics["length/generated_tokens"] == lengths.sum() and metrics["length/response_min"] == lengths.min() > 0
    assert metrics["length/response_mean"] == lengths.mean()
    assert metrics["length/generated_tokens"] + seen.rollouts.thrown < without["length/generated_tokens"]


def test_a_visit_has_the_number_of_its_votes(stopped):
    history, found = stopped
    counts = [len(ballot.classes) for seen, _ in found for ballot in seen.ballots]
    assert [sum(visit.counts) + visit.no_answer for visit in history.visits] == counts
    for visit, count, lengths in zip(
        history.visits, counts, [row for s, _ in found for row in s.rollouts.lengths], strict=True
    ):
        assert visit.length == lengths[:count].mean() and visit.share == max(visit.counts, default=0) / count


def test_generations_have_the_votes_that_count(stopped):
    seen, _ = stopped[1][0]
    made = {"labels": seen.verdict.labels, "winners": seen.verdict.winners, "rewards": seen.verdict.rewards}
    made |= {"truths": None, "same": lambda one, other: one == other}
    rows = generations(seen.batch, [""] * 4, seen.rollouts, seen.ballots, **made)
    assert [len(row["samples"]) for row in rows] == seen.rollouts.counted.sum(1).tolist()
    for row in rows:
        assert sum(sample["reward"] for sample in row["samples"]) == max(row["counts"])
        assert all(sample["tokens"] > 0 and sample["mean_logp"] < 0 for sample in row["samples"])
    json.dumps(rows)


@pytest.mark.slow
def test_an_evaluation_estimates_from_the_first_half():
    """Its numbers are those of half as many samples, none of which can stop; what all votes say stands beside."""
    found = []
    for changes in ({"eval.stop_votes": 0.9}, {"eval.samples": 3}):
        config = small_config(**changes, **{"eval.greedy": True, "eval.temperature": 0.3})
        session = ttrl.open_session(ttrl.read_inputs(config, training=False))
        [key] = ttrl.task_keys(session)
        result = ttrl.measure(session, session.inputs.sets[0], key, progress=lambda *done: None)
        found.append(result.numbers)
        assert all(len(row["samples"]) == 3 and "greedy" in row for row in result.rows())
        ttrl.close(session)
    with_stop, plain = found
    added = {"drawn_share", "stopped_maj"}
    assert with_stop.keys() - plain.keys() == added and "avg@3" in plain
    assert {name: x for name, x in with_stop.items() if name not in added} == pytest.approx(plain)
    assert 0.5 <= with_stop["drawn_share"] < 1 and 0 < with_stop["stopped_maj"] <= 1
    assert measured_samples(6, 0.9) == measured_samples(5, 0.9) == measured_samples(3, 0) == 3


# ---------------------------------------------------------------------- by hand


def ballot(*texts: str | None):
    return vote([None if text is None else Answer(text) for text in texts])


BALLOTS = [ballot("1", "2", "1"), ballot("3", "3", None, "4", "5")]


def test_rewards_of_ballots_of_different_lengths():
    """Votes that a question lacks have reward 0; a share is of the votes that count."""
    assert score(BALLOTS, [0, 0]).tolist() == [[1, 0, 1, 0, 0], [1, 1, 0, 0, 0]]
    np.testing.assert_array_equal(
        vote_share(BALLOTS), np.float32([[2 / 3, 1 / 3, 2 / 3, 0, 0], [2 / 5, 2 / 5, 0, 1 / 5, 1 / 5]])
    )
    assert answered(BALLOTS).tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 1, 1]]
    formed = in_format([["a", "b"], ["a", "a", "b"]], lambda text: text == "a")
    assert formed.tolist() == [[True, False, False], [True, True, False]]


def test_an_audit_of_ballots_of_different_lengths():
    """Each question counts alike, however many votes it has."""
    rewards, chosen = score(BALLOTS, [1, 0]), np.array([[0, 1], [0, 1]])
    found = audit(BALLOTS, [1, 0], rewards, chosen, ["1", "4"], stopped=True)
    # Of question 1 the vote 2 is rewarded, and none is as the truth 1 would have it. Of question 2 the votes 3, 3 are
    # rewarded, and 4 is not: 2 of 5 are right.
    assert found["votes_reward_accuracy"] == pytest.approx((0 / 3 + 2 / 5) / 2)
    assert found["votes_ground_truth_reward"] == pytest.approx((2 / 3 + 1 / 5) / 2)
    assert found["pass@2"] == 1 / 2 and "pass@5" not in found


def test_speed_counts_what_was_thrown_away():
    lengths, counted = np.array([[3, 4, 0], [5, 0, 0]]), np.array([[True, True, False], [True, False, False]])
    rollouts = Rollouts(*[np.zeros((2, 3, 5))] * 3, np.zeros((2, 3), bool), 20, counted=counted, thrown=4)
    found = speed(dataclasses.replace(rollouts, lengths=lengths), seconds=2.0)
    # 12 tokens count, of which the first of three responses took no step; 9 and 4 of 20 slot steps.
    assert found == {"sample_tokens_per_s": 8.0, "slot_use": 13 / 20, "thrown_share": 4 / 16}


def test_parts_of_rollouts_whose_votes_stop():
    counted = np.array([[True, True, False, True], [True, False, False, True]])  # the last is no vote
    numbers = np.arange(8).reshape(2, 4)
    rollouts = Rollouts(numbers[..., None], numbers, numbers[..., None], numbers > 3, 0, [["a", "b", "g"], ["c", "h"]])
    rollouts = dataclasses.replace(rollouts, counted=counted)
    votes, greedy = rollouts.of_votes(0, 3), rollouts.of_votes(3, 4)
    assert votes.texts == [["a", "b"], ["c"]] and greedy.texts == [["g"], ["h"]]
    most = votes.most_votes()
    assert most.lengths.tolist() == [[0, 1], [4, 5]] and most.texts == votes.texts
    assert most.counted.tolist() == [[True, True], [True, False]]


def test_what_a_vote_that_stops_says():
    ballots = [ballot("1", "1"), ballot("2", "3", "3", None), ballot("4", "5")]
    found = of_stopped(ballots, ["1", "2", None], votes=4)
    assert found == {"drawn_share": 8 / 12, "stopped_maj": 1 / 2}
    assert of_stopped(ballots, None, votes=4) == {"drawn_share": 8 / 12}


def test_evidence_is_as_wide_as_the_rewards(stopped):
    seen, _ = stopped[1][0]
    assert isinstance(seen.evidence, Evidence) and seen.evidence.lengths.shape == seen.verdict.rewards.shape
    assert np.isfinite(seen.evidence.mean_logps).all()
    assert (seen.evidence.mean_logps[~seen.rollouts.counted] == 0).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollout.stop_votes": -0.1}, "rollout.stop_votes is an error rate, at least 0 .* got -0.1"),
        ({"rollout.stop_votes": 1.0}, "rollout.stop_votes is an error rate, .* below 1, such as 0.05; got 1.0"),
        ({"rollout.stop_votes": float("nan")}, "rollout.stop_votes is an error rate"),
        ({"eval.stop_votes": 2.0}, "eval.stop_votes is an error rate"),
        ({"rollout.votes": 4}, "rollout.stop_votes=0.6 can stop no vote: train.samples=4 of rollout.votes=4"),
        ({"eval.stop_votes": 0.1, "eval.samples": 1}, "eval.stop_votes=0.1 can stop no vote of eval.samples=1"),
        ({"eval.stop_votes": 0.1, "eval.k": (4,)}, r"eval.k must hold .* to half of eval.samples, 3, got \(4,\)"),
    ],
)
def test_what_cannot_stop_is_refused(changes, said: str):
    check(small_config())
    check(small_config(**{"eval.stop_votes": 0.999, "eval.k": (3,)}))
    with pytest.raises(InputError, match=said):
        check(small_config(**changes))

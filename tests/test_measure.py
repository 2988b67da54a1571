"""Hand-worked: what an evaluation says of a few samples."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from ttrl_jax.data.problems import Problem
from ttrl_jax.measure import evaluation
from ttrl_jax.measure.generations import generations, undecided
from ttrl_jax.measure.step import line_of
from ttrl_jax.measure.tables import table
from ttrl_jax.records import Rollouts
from ttrl_jax.reward import numbers
from ttrl_jax.reward.equivalence import cluster, same
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.history import History
from ttrl_jax.reward.judge import Draw, Evidence, Judge
from ttrl_jax.reward.signals import vote_metrics
from ttrl_jax.reward.symbolic import Undecided
from ttrl_jax.reward.vote import vote


def answers(*texts: str | None) -> list[Answer | None]:
    return [None if text is None else Answer(text) for text in texts]


def evaluate(groups, rollouts, truths, *, greedy, readings, **more):
    """The same, of answers [P][k]."""
    greedy = None if greedy is None else [vote([answer]) for answer in greedy]
    readings = {name: [vote(group) for group in read] for name, read in readings.items()}
    ballots = [vote(group) for group in groups]
    return evaluation.evaluate(ballots, rollouts, truths, greedy=greedy, readings=readings, **more)


GROUPS = [
    answers("5", "5", "7", None),  # 2 of 4 right, the vote too
    answers("1", "2", "2", "3"),  # 1 of 4 right, the vote is not
    answers("9", "9.0", "09", "9"),  # all right
]
TRUTHS = ["5", "1", "9"]
LENGTHS = np.array([[3, 3, 3, 8], [4, 4, 4, 4], [5, 5, 5, 5]], np.int32)
TRUNCATED = np.array([[False, False, False, True]] + [[False] * 4] * 2)
# Mean log-probs: the response without an answer, then a 7, are the likeliest of the first question.
MEANS = np.array([[-3, -2, -1, -0.5], [-1, -2, -3, -4], [-1, -1, -1, -1]], np.float32)


def rollouts_of(lengths: np.ndarray, truncated: np.ndarray, means: np.ndarray) -> Rollouts:
    """Samples whose tokens' log-probs have these means, and an entry after the end that must not count."""
    logps = np.repeat(means[..., None], lengths.max() + 1, axis=2)
    logps[..., -1] = -100
    return Rollouts(np.zeros(logps.shape, np.int32), lengths, logps, truncated, 0)


ROLLOUTS = rollouts_of(LENGTHS, TRUNCATED, MEANS)


def test_with_truths():
    result = evaluate(GROUPS, ROLLOUTS, TRUTHS, extra_k=(), greedy=None, formed=None, readings={})
    assert result == pytest.approx(
        {
            "majority_ratio": (2 / 4 + 2 / 4 + 4 / 4) / 3,
            "truncation_rate": 1 / 12,
            "no_answer_rate": 1 / 12,
            "undecided": 0.0,
            "response_length": 53 / 12,
            "avg@4": (2 / 4 + 1 / 4 + 1) / 3,
            "std@4": (0.5 + (3 / 16) ** 0.5 + 0) / 3,
            "worst@4": 1 / 3,
            # of the 6 pairs: all but (7, None) have a 5; 3 have the 1
            "pass@2": (5 / 6 + 3 / 6 + 1) / 3,
            # 55: right; 57 twice: half each; 5 with None twice: right; 7 with None: wrong
            # 12 twice, 13: half each; 22, 23 twice: the truth has no vote
            "maj@2": ((1 + 2 * 0.5 + 2) / 6 + 3 * 0.5 / 6 + 1) / 3,
            "pass@4": 1.0,
            "maj@4": (1 + 0 + 1) / 3,
            # the best of a pair: None 3 times, 7 twice, 5 once; 1 three times of 6
            "best_of@2": (1 / 6 + 3 / 6 + 1) / 3,
            "best_of@4": (0 + 1 + 1) / 3,
        }
    )


def test_without_truths_only_what_needs_none():
    result = evaluate(GROUPS, ROLLOUTS, None, extra_k=(3,), greedy=answers("5", "1", "9"), formed=None, readings={})
    assert set(result) == {"majority_ratio", "truncation_rate", "no_answer_rate", "undecided", "response_length"}


def test_pairs_that_were_not_decided_are_bounded():
    ballot = vote(answers("1", "2"))
    odd = [Undecided("5" * 10_000, f"{i}", "undecided") for i in range(100)]
    problems = [Problem(i, f"id{i}", "?", None) for i in (4, 7)]
    rows = undecided(problems, [ballot, dataclasses.replace(ballot, pairs=tuple(odd))], step=3)
    assert rows == [
        {"step": 3, "question": 7, "first": "5" * 300, "second": f"{i}", "why": "undecided"} for i in range(64)
    ]


def test_questions_without_a_truth_are_left_out_and_the_others_counted():
    asked = dict(extra_k=(3,), formed=None)
    greedy, flexible = answers("5", "1", "8"), {"flexible": GROUPS}
    found = evaluate(GROUPS, ROLLOUTS, ["5", None, "9"], greedy=greedy, readings=flexible, **asked)
    alone = dataclasses.replace(ROLLOUTS, **{name: getattr(ROLLOUTS, name)[::2] for name in ("lengths", "logps")})
    alone = dataclasses.replace(alone, truncated=TRUNCATED[::2])
    kept = GROUPS[::2]
    expected = evaluate(kept, alone, ["5", "9"], greedy=greedy[::2], readings={"flexible": kept}, **asked)
    free = evaluate(GROUPS, ROLLOUTS, None, greedy=None, readings=flexible, **asked)  # what is of all questions
    assert found == pytest.approx(expected | free | {"truths": 2.0})
    assert [line.split() for line in table({"a": found}, samples=4, extra_k=()).splitlines() if "truths" in line] == [
        ["truths", "2"]
    ]


def test_a_sample_count_that_is_no_power_of_two():
    rollouts = rollouts_of(np.ones((1, 3), np.int32), np.zeros((1, 3), bool), -np.ones((1, 3), np.float32))
    result = evaluate([answers("1", "1", "2")], rollouts, ["1"], extra_k=(), greedy=None, formed=None, readings={})
    assert result["avg@3"] == pytest.approx(2 / 3)
    assert result["maj@3"] == result["pass@3"] == 1
    assert result["pass@2"] == 1 and "pass@4" not in result


def test_extra_k_and_greedy_are_added():
    plain = evaluate(GROUPS, ROLLOUTS, TRUTHS, extra_k=(), greedy=None, formed=None, readings={})
    greedy = answers("5.0", "2", None)
    more = evaluate(GROUPS, ROLLOUTS, TRUTHS, extra_k=(3, 1, 4), greedy=greedy, formed=None, readings={})
    assert {name: more[name] for name in plain} == plain
    added = {name: x for name, x in more.items() if name not in plain}
    assert added == pytest.approx(
        {
            "greedy": 1 / 3,
            **{f"{name}@1": plain["avg@4"] for name in ("pass", "maj", "best_of")},
            # of the 4 triples: 557, 55-, 57- twice; 122, 123 twice, 223
            "pass@3": (1 + 3 / 4 + 1) / 3,
            "maj@3": ((1 + 1 + 2 / 2) / 4 + (0 + 2 / 3) / 4 + 1) / 3,
            # the best of three: None in 3 of 4, then 7; the 1 in 3 of 4
            "best_of@3": (0 + 3 / 4 + 1) / 3,
        }
    )


def test_an_empty_answer_is_none_here_as_in_the_vote():
    groups = [answers("5", r"\,", None, "5"), answers("", "2", "2", "3"), answers("9", "9", "9", "9")]
    readings = {"strict": [answers(r"\,", "5", None, None), *groups[1:]]}
    found = evaluate(groups, ROLLOUTS, TRUTHS, extra_k=(), greedy=None, formed=None, readings=readings)
    assert found["no_answer_rate"] == 3 / 12 and found["strict_valid_rate"] == 8 / 12
    ballots = [vote(group) for group in groups]
    verdict = Judge()(ballots, Evidence(LENGTHS, MEANS, None), History(), Draw(0, 0, [0, 1, 2]))
    chosen = np.tile(np.arange(4), (3, 1))
    of_vote = vote_metrics(ballots, verdict, chosen, [None] * 3, classes=cluster)
    assert of_vote["no_answer_rate"] == pytest.approx(found["no_answer_rate"])


STRICT = [answers("5", None, "7", None), answers(None, "2", "2", "3"), answers("9", "9.0", "09", None)]


def test_a_format_and_a_reading_add_their_numbers_and_change_no_other():
    plain = evaluate(GROUPS, ROLLOUTS, TRUTHS, extra_k=(), greedy=None, formed=None, readings={})
    formed = np.array([[True, False, True, True], [False, True, True, True], [True, True, True, False]])
    more = {"extra_k": (1,), "greedy": None, "formed": formed, "readings": {"strict": STRICT}}
    found = evaluate(GROUPS, ROLLOUTS, TRUTHS, **more)
    assert {name: found[name] for name in plain} == plain
    added = {name: x for name, x in found.items() if name not in plain and not name.endswith("@1")}
    assert added == pytest.approx(
        {
            "format_rate": 9 / 12,
            "strict_valid_rate": 8 / 12,
            # one 5; no 1; three 9s
            "strict_avg@4": (1 + 0 + 3) / 12,
            # of the 6 pairs of 5, 7 and two without an answer 3 have the 5; all pairs have a 9
            "strict_pass@2": (3 / 6 + 0 + 1) / 3,
            "strict_pass@4": (1 + 0 + 1) / 3,
            # 57: half, 5 with None twice: right, without the 5 never
            "strict_maj@2": ((1 / 2 + 2) / 6 + 0 + 1) / 3,
            "strict_maj@4": (1 / 2 + 0 + 1) / 3,
        }
    )
    assert found["strict_maj@1"] == found["strict_pass@1"] == pytest.approx(found["strict_avg@4"])
    blind = evaluate(GROUPS, ROLLOUTS, None, **more)
    assert blind["format_rate"] == 9 / 12 and blind["strict_valid_rate"] == 8 / 12
    assert not {name for name in blind if "@" in name}


def test_the_numbers_of_a_reading_against_brute_force():
    """Slow twin: every draw of j of the 8 samples, voting or with one right among them; ties split evenly."""
    written = {
        "12": ["12", "12", "7", None, "12,0", "7", None, "12"],
        "1250": ["1.250", "1250", "1250,0", None, None, None, "1,25", "1,25"],
        "3": [None] * 8,
        "40": ["4", "4", "40", "40", "40,5", None, "4", "40"],
    }
    read = [
        [None if text is None else Answer(numbers.plain(text, "tr")) for text in group] for group in written.values()
    ]
    rollouts = rollouts_of(np.ones((4, 8), np.int32), np.zeros((4, 8), bool), -np.ones((4, 8), np.float32))
    other = [answers(*"12345678")] * 4
    found = evaluate(
        other, rollouts, list(written), extra_k=(1, 3), greedy=None, formed=None, readings={"flexible": read}
    )
    for j in (1, 2, 3, 4, 8):
        passed, won = [], []
        for truth, group in zip(written, read, strict=True):
            values = [None if answer is None else float(answer.text) for answer in group]
            for drawn in itertools.combinations(values, j):
                counts = Counter(value for value in drawn if value is not None)
                most = [value for value, count in counts.items() if count == max(counts.values())]
                passed.append(float(truth) in drawn)
                won.append((float(truth) in most) / max(1, len(most)))
        assert found[f"flexible_pass@{j}"] == pytest.approx(np.mean(passed)), j
        assert found[f"flexible_maj@{j}"] == pytest.approx(np.mean(won)), j
    assert found["flexible_avg@8"] == pytest.approx((4 + 3 + 0 + 3) / 32)
    assert found["flexible_valid_rate"] == (6 + 5 + 0 + 7) / 32 and "strict_valid_rate" not in found
    assert 0 < found["flexible_maj@2"] < found["flexible_maj@8"] < found["flexible_pass@8"] < 1


def test_mean_logps_leave_out_what_follows_the_end():
    assert ROLLOUTS.mean_logps.tolist() == MEANS.tolist()


def test_generations_say_what_became_of_each_response():
    rollouts = rollouts_of(LENGTHS[:1], TRUNCATED[:1], MEANS[:1])
    problem = Problem(0, "q1", "How many?", None)
    texts = [["a \\boxed{5}", "b \\boxed{5}", "c \\boxed{7}", "d"]]
    rewards = np.array([[1, 1, 0, 0]], np.float32)
    rollouts = dataclasses.replace(rollouts, texts=texts)
    made = [problem], ["Q: 3 + 4"], rollouts, [vote(GROUPS[0])]
    more = {"labels": [0], "winners": [0], "rewards": rewards, "same": same}
    [row] = generations(*made, **more, truths=["7.0"])
    assert (row["id"], row["question"], row["label"], row["counts"]) == ("q1", "How many?", "5", [2, 1])
    assert row["prompt"] == "Q: 3 + 4"
    assert (row["truth"], row["right"]) == ("7.0", 1)  # the class of the 7
    assert row["majority"] == "5"
    for label, text in ((1, "7"), (None, None)):  # of a baseline, an oracle or a control
        [other] = generations(*made, **more | {"labels": [label]}, truths=None)
        assert (other["label"], other["majority"]) == (text, "5")
    blind = generations(*made, **more, truths=None)
    assert generations(*made, **more, truths=[None]) == blind
    assert blind == [{name: x for name, x in row.items() if name not in ("truth", "right")}]
    assert row["samples"][2] == {
        "response": "c \\boxed{7}", "answer": "7", "class": 1, "tokens": 3, "truncated": False, "mean_logp": -1.0,
        "reward": 0.0,
    }  # fmt: skip
    assert row["samples"][3] == {
        "response": "d", "answer": None, "class": None, "tokens": 8, "truncated": True, "mean_logp": -0.5,
        "reward": 0.0,
    }  # fmt: skip

    formed = np.array([[True, True, False, False]])
    more |= {"truths": None, "formed": formed, "spelled": lambda token: f"<{token}>"}
    [kept] = generations(*made, **more)
    assert [sample["in_format"] for sample in kept["samples"]] == [True, True, False, False]
    for sample, tokens, logps in zip(kept["samples"], rollouts.tokens[0], rollouts.logps[0], strict=True):
        expected = [
            (f"<{token}>", pytest.approx(float(logp), abs=1e-4)) for token, logp in zip(tokens, logps, strict=True)
        ]
        assert sample["token_logps"] == expected[: sample["tokens"]]  # the padding left out


def test_table_has_a_column_for_each_result_and_a_dash_for_what_one_lacks():
    columns = {
        "before": {"avg@4": 0.25, "majority_ratio": 0.5, "pass@3": 0.75, "pass@2": 0.5},
        "a title that is long": {"majority_ratio": 0.75},
    }
    lines = table(columns, samples=4, extra_k=(3, 4)).splitlines()
    assert lines[0].split(maxsplit=1) == ["before", "a title that is long"]
    assert [line.split() for line in lines[1:]] == [
        ["avg@4", "0.250", "-"],
        ["pass@3", "0.750", "-"],  # asked for; pass@2 was not
        ["majority_ratio", "0.500", "0.750"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_table_shows_the_readings_of_a_format_with_the_k_that_were_asked_for():
    result = {"avg@8": 0.5, "strict_avg@8": 0.25, "flexible_avg@8": 0.75, "strict_valid_rate": 0.4}
    result |= {f"{name}@{j}": j / 10 for j in (1, 2, 8) for name in ("maj", "strict_maj", "strict_pass")}
    shown = [line.split() for line in table({"data": result}, samples=8, extra_k=(1,)).splitlines()[1:]]
    strict = [["strict_maj@1", "0.100"], ["strict_pass@1", "0.100"], ["strict_maj@8", "0.800"]]
    assert shown == [
        ["avg@8", "0.500"],
        ["maj@8", "0.800"],
        ["maj@1", "0.100"],
        ["strict_valid_rate", "0.400"],
        ["strict_avg@8", "0.250"],
        *strict,
        ["strict_pass@8", "0.800"],
        ["flexible_avg@8", "0.750"],
    ]


def test_the_line_of_a_step_names_silence_where_it_is_high():
    """Truths and entropies are not always known."""
    metrics = {"vote/majority_ratio": 0.5, "vote/majority_voting_reward": 0.25, "audit/label_accuracy": 1.0}
    silent = {"vote/no_answer_rate": 0.05, "length/truncation_rate": 0.049}
    cut = {"vote/no_answer_rate": 0.0, "length/truncation_rate": 0.5}
    begins = "majority ratio 0.500, reward 0.250, label accuracy 1.000"
    assert line_of(metrics | silent) == f"{begins}, no answer 0.050"
    assert line_of(metrics | cut) == f"{begins}, cut 0.500"
    chosen = {"judge/unlabelled_rate": 0.75, "judge/negative_rate": 0.1, "judge/skipped_rate": 0.0}
    del metrics["audit/label_accuracy"]  # as where no question has a label
    begins = "majority ratio 0.500, reward 0.250, without a label 0.750, pushed away 0.100, skipped 0.000"
    assert line_of(metrics | chosen | cut) == f"{begins}, cut 0.500"


def test_a_result_is_split_by_level():
    """avg@4 of the three is 2/4, 1/4, 4/4; the votes of the first and the third are right. Level 2 has the first and
    the third, level 5 the second; a fourth, which is of no level, counts in the whole alone."""
    four = rollouts_of(*(np.concatenate([each, each[:1]]) for each in (LENGTHS, TRUNCATED, MEANS)))
    asked = {"extra_k": (), "greedy": None, "formed": None, "readings": {}}
    groups, truths = [*GROUPS, GROUPS[0]], [*TRUTHS, "5"]
    found = evaluate(groups, four, truths, levels=[2, 5, 2, None], **asked)
    split = {name: value for name, value in found.items() if name.startswith("level")}
    assert split == {
        "level2_avg@4": 0.75, "level2_maj@4": 1.0, "level2_majority_ratio": 0.75, "level2_no_answer_rate": 0.125,
        "level2_truncation_rate": 0.125, "level2_response_length": (4.25 + 5) / 2,
        "level5_avg@4": 0.25, "level5_maj@4": 0.0, "level5_majority_ratio": 0.5, "level5_no_answer_rate": 0.0,
        "level5_truncation_rate": 0.0, "level5_response_length": 4.0,
    }  # fmt: skip
    shown = [line.split() for line in table({"run": found}, samples=4, extra_k=()).splitlines()]
    assert ["level2_avg@4", "0.750"] in shown and ["level5_response_length", "4.000"] in shown
    whole = {name: value for name, value in found.items() if name not in split}
    assert evaluate(groups, four, truths, **asked) == whole
    for levels in ([2] * 4, [2, 2, 2, None], [None] * 4):  # one level is the whole
        assert evaluate(groups, four, truths, levels=levels, **asked) == whole
    some = evaluate(groups, four, ["5", None, "9", None], levels=[2, 5, 2, None], **asked)
    assert some["level2_avg@4"] == 0.75 and "level5_avg@4" not in some and some["level5_response_length"] == 4.0

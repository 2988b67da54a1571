"""Hand-worked: what a pool of runs says of verdicts, choices, labels and certificates. Semantics: its runs, which are
refused, trained once and read. Pulse: two tiny runs and their tables."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_choice import visit
from test_diagnosis import HEALTHY, ramp
from test_diagnosis import run as rows_of
from test_diagnosis import votes as visits_of

from ttrl_jax.errors import InputError
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.rules import chance
from ttrl_jax.reward.verdict import Settings
from ttrl_jax.reward.vote import vote
from ttrl_jax.run.choice import CHANGED
from ttrl_jax.run.diagnosis import LIMITS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import pool as command  # noqa: E402
from studies import pool, pool_scores, pool_shown, runs, yes_no  # noqa: E402
from studies.pool import Seen, Vote  # noqa: E402


def seen(held_out: dict[int, float], **more: Any) -> Seen:
    """A run of 48 steps whose majority ratio rises up to the end, with these accuracies."""
    own = {"name": "one", "family": "noise", "variant": "base", "steps": 48, "episode": 2, "own": held_out}
    own |= {"rows": rows_of(vote_majority_ratio=ramp(0.2, 0.776)), "visits": visits_of(*[HEALTHY] * 24)}
    return Seen(**own | {"changes": np.zeros(64)} | more, held_out=held_out)


GAINS = seen({0: 0.2, 24: 0.4, 48: 0.5})

# ---------------------------------------------------------------------- (a) verdicts


@pytest.mark.parametrize(
    ("held_out", "right"),
    [
        # The last evaluation before half of the steps is that after 24 of 48.
        ({0: 0.2, 24: 0.4, 48: 0.5}, {"learning"}),  # gained 0.3, and moved by 0.1 since
        ({0: 0.2, 24: 0.48, 48: 0.5}, {"learning", "converged"}),
        ({0: 0.2, 24: 0.22, 48: 0.23}, {"stuck", "converged"}),
        ({0: 0.2, 24: 0.2, 48: 0.125}, {"collapsing"}),  # 0.075 below the start
        ({0: 0.25, 24: 0.5, 48: 0.375}, {"collapsing", "learning"}),  # 0.125 below its best, and above its start
        ({0: 0.25, 24: 0.3, 48: 0.24}, {"stuck"}),  # moved by 0.06 since
    ],
)
def test_which_verdicts_the_truth_confirms(held_out, right):
    found = seen(held_out)
    said = {name for name in pool_shown.VERDICTS if pool_scores.holds(name, found, 0.5)}
    assert said == right and pool_scores.collapsed(found) == ("collapsing" in right)
    assert pool_scores.holds("too short", found, 0.5) is None


def test_how_often_verdicts_are_right():
    """A quarter of 48 steps is too short; after half of them and at the end the ratio has risen: of two such runs one
    has gained."""
    loses = seen({0: 0.2, 24: 0.2, 48: 0.1})
    assert pool_scores.hits([GAINS, loses], 0.25) == {"too short": (0, 2)}
    for share in (0.5, 1.0):
        assert pool_scores.hits([GAINS, loses], share) == {"learning": (1, 2)}
    flat = replace(GAINS, rows=rows_of(vote_majority_ratio=[0.2] * 48))
    assert pool_scores.hits([GAINS, flat], 1.0) == {"learning": (1, 1), "stuck": (0, 1)}


def test_limits_are_fitted():
    """The ratio rises by 0.04 in all, which is no rise to a limit of 0.05, and one to 0.03 and 0.035. The run has
    gained, so that stuck is wrong. After half of it the rise is 0.02, which is none to any of the grid."""
    slow = replace(GAINS, rows=rows_of(vote_majority_ratio=ramp(0.2, 0.24, start=4, end=44)))
    assert pool_scores.verdict(slow, 1.0).verdict == "stuck"
    fitted = pool_scores.fit([slow], {"rise": (0.06, 0.03, 0.035)})
    assert fitted == replace(LIMITS, rise=0.03)  # of equal ones the first
    assert pool_scores.verdict(slow, 1.0, fitted).verdict in ("learning", "converged")
    assert pool_scores.fit([GAINS], {"rise": (0.03, 0.04)}) == LIMITS  # none is better


# ---------------------------------------------------------------------- (b) the choice


def chosen(*courses: tuple[float, float]) -> Seen:
    """A run of two questions, each a step, of a share of votes and an accuracy in each episode; the last model has no
    votes."""
    visits = [
        visit(2 * i + q, q, f"{q}", [round(10 * share)], silent=10 - round(10 * share))
        for i, (share, _) in enumerate(courses[:-1])
        for q in range(2)
    ]
    accuracies = {2 * i: accuracy for i, (_, accuracy) in enumerate(courses)}
    return replace(GAINS, visits=visits, own=accuracies, held_out=accuracies)


def test_the_choice_of_a_model():
    """The share is highest after 4 steps, whose accuracy is 0.5 of 0.55, which is 0.909; the last candidate's, after 6
    steps, is 0.2, and the model after 8 steps is none."""
    found = pool_scores.choice(chosen((0.5, 0.3), (0.6, 0.55), (0.8, 0.5), (0.7, 0.2), (1.0, 0.9)))
    assert found == pool_scores.Choice(step=4, chosen=0.5, best=0.55, start=0.3, last=0.2) and found.good
    assert not replace(found, chosen=0.49).good  # 0.495 are 0.9 of 0.55
    stays = pool_scores.choice(chosen((0.5, 0.3), (0.4, 0.0), (0.0, 0.0)))
    assert stays == pool_scores.Choice(step=0, chosen=0.3, best=0.3, start=0.3, last=0.0)
    assert pool_scores.choice(chosen((0.5, 0.3), (0.0, 0.0))) is None


def test_the_table_of_choices():
    good, bad = chosen((0.5, 0.3), (0.6, 0.5), (0, 0.5)), chosen((0.5, 0.3), (0.6, 0.1), (0, 0.1))
    rows = pool_shown.choices_table({"calibration": [good, bad], "test": []}).rows
    assert rows[0] == ["calibration", "all", *["1 of 2 (50.0%)"] * 4]
    assert rows[1] == ["calibration", "collapsed", *["0 of 1 (0.0%)"] * 3, "1 of 1 (100.0%)"]
    assert rows[2][2:] == ["-"] * 4


def test_how_many_labels_may_change_is_fitted():
    """Of ten questions, clear at first, `others` have another label in the second episode, whose model is better or
    worse: the default takes what changed one or two, 0.3 what changed three."""

    def run(others: int, after: float) -> Seen:
        visits = [visit(q, q, f"{q}", [7, 3]) for q in range(10)]
        for q in range(10):
            visits.append(visit(10 + q, q, f"{q + 90 if q < others else q}", [9, 1], flipped=q < others))
        accuracies = {0: 0.5, 10: after, 20: after}
        return replace(GAINS, episode=10, visits=visits, own=accuracies, held_out=accuracies)

    assert pool_scores.fit_choice([run(1, 0.9)]) == CHANGED == 0.25
    assert pool_scores.fit_choice([run(1, 0.9), run(3, 0.9), run(4, 0.1)]) == 0.3
    assert pool_scores.fit_choice([run(2, 0.1)]) == 0.1


# ---------------------------------------------------------------------- (c) how likely a label is right


def test_the_clarity_of_a_vote_is_that_of_the_rule():
    """Slow twin of `rules.chance`, whose slope is 1 and whose offset is 0."""
    for answers in ("1111223", "11", "12", "1112" * 4):
        ballot = vote([Answer(each) for each in answers])
        others = [count for k, count in enumerate(ballot.counts) if k != ballot.label]
        z = pool_scores.clarity([Vote(ballot.counts[ballot.label], max(others, default=0), len(answers), True)])[0]
        assert 1 / (1 + math.exp(-z)) == pytest.approx(chance(ballot, ballot.label, Settings()))
    # 3 of 4 votes, and 1 for another: log 3.5 - (log 1.5 + log 1.5) / 2 = 0.8473.
    assert pool_scores.clarity([Vote(3, 1, 4, True)])[0] == pytest.approx(0.8473, abs=1e-4)


def test_the_logistic_curve_that_made_the_labels_is_found():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, 20_000)
    right = (rng.random(len(z)) < 1 / (1 + np.exp(-(1.5 * z - 0.5)))).astype(float)
    slope, offset = pool_scores.logistic(z, right, np.ones(len(z)))
    assert slope == pytest.approx(1.5, abs=0.06) and offset == pytest.approx(-0.5, abs=0.06)


def test_the_nearest_function_that_never_falls():
    """Of 1, 3, 2, 4 the second and the third are put together; a value twice is one. Weights count."""
    begins, levels = pool_scores.isotonic(np.array([4.0, 1, 2, 3]), np.array([4.0, 1, 3, 2]), np.array([1.0, 1, 1, 1]))
    assert begins.tolist() == [1, 2, 4] and levels.tolist() == [1, 2.5, 4]
    assert pool_scores.level(np.array([0.0, 1.5, 3.9, 9]), begins, levels).tolist() == [1, 1, 2.5, 4]
    begins, levels = pool_scores.isotonic(np.array([1.0, 1, 2]), np.array([1.0, 0, 0]), np.array([1.0, 1, 2]))
    assert begins.tolist() == [1] and levels.tolist() == [0.25]


def test_the_score_of_a_probability():
    """(0.2^2 + 0.6^2) / 2 = 0.2; with three times the weight of the first (3 * 0.04 + 0.36) / 4 = 0.12."""
    chances, right = np.array([0.8, 0.6]), np.array([1.0, 0.0])
    assert pool_scores.brier(chances, right, np.ones(2)) == pytest.approx(0.2)
    assert pool_scores.brier(chances, right, np.array([3.0, 1.0])) == pytest.approx(0.12)
    found = pool_scores.reliability(np.array([0.05, 0.82, 0.88, 1.0]), np.array([0, 1, 0, 1.0]), np.ones(4))
    assert [round(each[0], 1) for each in found] == [0.0, 0.8, 0.9]
    assert found[1] == pytest.approx((0.8, 0.5, 0.85, 0.5))


def test_each_run_weighs_as_much():
    many = replace(GAINS, votes=[Vote(3, 1, 4, True)] * 4)
    z, right, weights = pool_scores.labels([many, replace(GAINS, votes=[Vote(2, 2, 4, False)]), GAINS])
    assert weights.tolist() == [0.25] * 4 + [1] and right.tolist() == [1] * 4 + [0] and len(z) == 5
    assert np.average(right, weights=weights) == 0.5


def test_the_tables_of_right_labels():
    """Of the calibration half three labels in four are right, of the test half one in two: (1/16 + 9/16) / 2 = 0.3125.
    A run that has collapsed is left out of the second part."""
    votes = [Vote(3, 1, 4, right) for right in (True, True, True, False)]
    fell = replace(GAINS, held_out={0: 0.5, 48: 0.1}, votes=[Vote(4, 0, 4, False)])
    tested = replace(GAINS, votes=[Vote(3, 1, 4, True), Vote(3, 1, 4, False)])
    soft, bins = pool_shown.chance_tables({"calibration": [replace(GAINS, votes=votes), fell], "test": [tested]})
    kinds = [[row for row in soft.rows if row[0] == kind] for kind in ("all", "not collapsed")]
    assert [len(rows) for rows in kinds] == [4, 4]
    assert kinds[1][0][2] == "0.3125" and kinds[1][3][2] == "0.3125"  # of one clarity isotonic is the share
    assert kinds[0][0][2] == "0.2656"  # 3/8 of the labels are right, each run alike: (25/64 + 9/64) / 2
    assert "soft_slope 1, soft_offset 0" in kinds[0][1][1]
    assert [row[0] for row in bins.rows] == ["all", "not collapsed"] and [row[4] for row in bins.rows] == ["0.500"] * 2
    assert pool_shown.chance_tables({"calibration": [], "test": [tested]})[0].rows == []


# ---------------------------------------------------------------------- (d) the certificate


def test_what_certificates_return():
    """A steady gain of 0.6 is always returned, for 8 canaries do, a loss never. Too small a run is not drawn."""
    better, worse, small = (replace(GAINS, changes=np.full(n, d)) for n, d in ((64, 0.6), (64, -0.3), (32, 0.6)))
    found = pool_scores.certified([better, worse, small], draws=100)
    assert found == pool_scores.Certified(100, worse=50, worse_returned=0, better=50, better_returned=50)
    assert pool_scores.certified([small]).draws == 0
    rows = pool_shown.certificate_table({"calibration": [better], "test": [worse]}).rows
    assert rows[0][1:] == ["1000", "0 of 1000 (0.0%)", "-", "1000 of 1000 (100.0%)"]
    assert rows[2][1:] == ["1000", "0 of 1000 (0.0%)", "0 of 500 (0.0%)", "500 of 500 (100.0%)"]


def test_a_lucky_draw_returns_a_worse_model():
    """Of 64 questions 32 gain 0.6 and 32 lose 1: whichever are the canaries, by chance more of those that gain, the
    others are worse. It happens, and is counted."""
    mixed = replace(GAINS, changes=np.array([0.6] * 32 + [-1.0] * 32))
    found = pool_scores.certified([mixed])
    assert 0 < found.worse_returned < 100 < found.worse <= 1000 and found.better == 0


# ---------------------------------------------------------------------- the runs


def test_the_runs_of_the_pool(tmp_path: Path):
    """At least 60, over both halves, each a family of its own; each kind with all families before the next one."""
    found = pool.runs_of(tmp_path, list(pool.FAMILIES), list(pool.VARIANTS), {})
    assert len(found) >= 60 and len({run.name for run in found}) == len(found)
    halves = {
        half: {run.arm[0] for run in found if pool.FAMILIES[run.arm[0]].half == half} for half in pool_shown.HALVES
    }
    assert halves == {"calibration": {"noise", "belief", "ways"}, "test": {"mixed", "half_known", "digits"}}
    assert [run.arm[1] for run in found[:12]] == ["base"] * 6 + ["fast"] * 6
    both = pool.runs_of(tmp_path, list(pool.FAMILIES), list(pool.VARIANTS), {}, seeds=(0, 3))
    assert both[: len(found)] == found and {run.seed for run in both[len(found) :]} == {3}
    keys = [run.changes for run in found]
    assert {each["rollout.prompts"] for each in keys} == {1, 2, 8, 16} and {each["rollout.votes"] for each in keys} == {
        8,
        16,
        64,
    }
    assert {each.get("algorithm", "grpo") for each in keys} == {"grpo", "ppo", "prime", "rloo", "dr_grpo"}
    for run in found:
        each = run.changes
        steps = each["episodes"] * pool.TRAINED // each["rollout.prompts"]
        if run.arm[0] != "digits":  # four evaluations, each at the end of an episode
            episode = pool.TRAINED // each["rollout.prompts"]
            assert steps >= 32 and each["eval.every"] * 4 == steps and each["eval.every"] % episode == 0


def test_the_runs_have_models_and_questions_and_a_time(tmp_path: Path):
    pool.write_questions(tmp_path)
    there = [name for name, family in pool.FAMILIES.items() if family.there]
    found = pool.runs_of(tmp_path, there, list(pool.VARIANTS), {})
    budgets = runs.check(found)
    assert len(budgets) == len(found) and 0 < pool.seconds(found, budgets) < 8 * 3600
    budget = budgets["ways-base-seed0"]
    assert (budget.steps, budget.responses, budget.evaluations) == (64, 128, 5)
    assert budget.evaluated == 16 * (pool.TRAINED + pool.MEASURED)
    both = [
        {json.loads(line)["prompt"] for line in pool.question_file(tmp_path, "sums", part, yes_no=True).open()}
        for part in ("train", pool.HELD_OUT)
    ]  # fmt: skip
    assert [len(each) for each in both] == [32, 128] and not both[0] & both[1]


def test_yes_and_no():
    """Whether the last digit but one is even; a carry that is forgotten says the other."""
    task = yes_no.get_task()
    answers = ["37 + 48 = \\boxed{85}", "\\boxed{75}", "\\boxed{7}", "\\boxed{120}", "85", "\\boxed{8.5}", "\\boxed{}"]
    found = [None if (answer := task.extract(each)) is None else answer.text for each in answers]
    assert found == ["yes", "no", "yes", "yes", None, None, None]
    assert task.same(task.extract(answers[0]), task.extract(answers[2]))
    assert task.messages("How many?") == [{"role": "user", "content": "How many?"}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--families", "nobody"], "--families knows noise, .*, got 'nobody'"),
        (["--variants", "base,no"], "--variants knows base, .*, got 'no'"),
        (["--config.no.key=3"], "no.key"),
        (["--config.seed=3"], "--seeds"),
        (["--seeds", "0,0"], "--seeds takes whole numbers, each once"),
        (["--report"], "no finished run"),
        (["--families", "ways", "--variants", "base", "--config.episodes=40000"], "more than 8 hours"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path: Path, arguments: list[str], words: str):
    with pytest.raises(InputError, match=words):
        command.main([*arguments, "--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").glob("ways*"))


def test_what_is_read_of_a_vote():
    """Two of three have the majority's answer, and the truth is in the other class, or in that."""
    samples = [{"answer": "5", "class": 0}, {"answer": "6", "class": 1}, {"answer": "6.0", "class": 1}]
    row = {"majority": "6", "counts": [1, 2], "samples": samples, "right": 0}
    assert pool._vote(row) == Vote(2, 1, 3, right=False) and pool._vote(row | {"right": 1}) == Vote(2, 1, 3, right=True)
    assert pool._vote(row | {"right": None}) == Vote(2, 1, 3, right=False)
    assert pool._vote(row | {"majority": None}) is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tiny_pool(tmp_path: Path):
    """Two runs are trained once, and shown as they were."""
    out = tmp_path / "pool"
    arguments = ["--out", str(out), "--families", "ways", "--variants", "base,random", "--config.episodes=2"]
    arguments += ["--config.eval.every=4", "--config.rollout.votes=4", "--config.train.samples=4"]
    arguments += ["--config.eval.samples=2"]

    def call(*more: str) -> str:
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / "pool.py", *arguments, *more],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = call()
    assert "2 of 2 runs are missing: about" in said and "wrote POOL.md and CSV files of 2 of 2 runs" in said
    tables = sorted(path.name for path in out.glob("*.csv"))
    assert "pool_runs.csv" in tables and "pool_verdicts_calibration.csv" in tables and "pool_certificate.csv" in tables
    lines = (out / "pool_runs.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[1].startswith("calibration,ways,8 questions x 16 votes,8,")
    read = pool.read(pool.run_of(out, "ways", "base", {}), out)
    assert sorted(read.own) == sorted(read.held_out) == [0, 4, 8] and read.changes.shape == (128,)
    assert read.changes.mean() == pytest.approx(read.held_out[8] - read.held_out[0])
    assert len(read.votes) <= len(read.visits) == 64 and any(vote.right for vote in read.votes)
    again = call()
    assert "0 of 2 runs are missing" in again and "==" not in again
    assert again.splitlines()[1:] == call("--report").splitlines()

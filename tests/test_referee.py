"""Hand-worked: what the referee counts. Semantics: which runs it makes, at equal cost; one of them from end to end."""

import csv
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from ttrl_jax.errors import InputError
from ttrl_jax.report.data import Group, Run, read_run
from ttrl_jax.run.metrics import write_json, write_jsonl

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import make_families  # noqa: E402
import referee  # noqa: E402
from studies import ruling, runs  # noqa: E402


def row(question: int, counts: list[int], right: int | None) -> dict[str, Any]:
    """A question's generations, as far as they are read here."""
    return {"id": str(question), "counts": counts, "right": right}


# Right at the start: questions 0, 1 and 2; in 2 the truth ties, and was seen first. In 3 it ties and was seen second,
# in 4 it is the runner-up, in 5 nobody gave it.
BEFORE = [row(0, [9, 7], 0), row(1, [3, 8, 5], 1), row(2, [6, 6, 4], 0), row(3, [8, 8], 1), row(4, [10, 6], 1),
          row(5, [16], None)]  # fmt: skip
# 0 stays right, 1 and 2 are harmed, 3 is learned, 4 and 5 stay wrong; in another order.
AFTER = [row(5, [12, 4], 1), row(4, [16], None), row(3, [2, 14], 1), row(2, [7, 9], 0), row(1, [16], None),
         row(0, [16], 0)]  # fmt: skip


def made(where: Path, seed: int, avg: tuple[float, float], *, tokens: int = 100) -> Run:
    """A finished run of two steps, with BEFORE and AFTER on both sets."""
    rows: list[dict[str, Any]] = [{"step": step, "length/generated_tokens": tokens} for step in (0, 1)] + [{"step": 2}]
    summary: dict[str, Any] = {"verdict": "", "diagnosis": "", "steps": 2, "seconds": 10.0, "params_sha256": ""}
    for place, when, accuracy, asked in ((0, "before", avg[0], BEFORE), (2, "after", avg[1], AFTER)):
        numbers = {"avg@2": accuracy, "avg@16": accuracy, "pass@2": 0.5, "pass@16": accuracy / 2}
        for task, name in (("data", when), ("held_out", f"held_out_{when}")):
            summary[name] = numbers
            rows[place] |= {f"eval/{task}/{key}": value for key, value in numbers.items()}
            write_jsonl(where / "rollouts" / f"eval_{task}_{place:06}.jsonl", asked)
    write_json(where / "config.json", {"config": {"seed": seed}, "model": {}})
    write_jsonl(where / "metrics.jsonl", rows)
    write_json(where / "summary.json", summary)
    return read_run(where, where.name)


def results(tmp_path: Path) -> dict[tuple[str, str], Group]:
    """Two seeds of three methods; each starts at 0.5 and 0.4."""
    ends = {"majority": (0.7, 0.7), "random": (0.4, 0.2), "oracle": (0.9, 0.8)}
    return {
        ("belief", method): Group(
            tuple(made(tmp_path / f"{method}{seed}", seed, ((0.5, 0.4)[seed], end[seed])) for seed in (0, 1))
        )
        for method, end in ends.items()
    }


# ---------------------------------------------------------------------- what is counted


def test_harmed_and_learned_by_hand():
    assert [ruling.majority_right(each) for each in BEFORE] == [True, True, True, False, False, False]
    assert ruling.changes(BEFORE, AFTER) == ruling.Changes(questions=6, harmed=2, learned=1)
    assert ruling.changes(AFTER, BEFORE) == ruling.Changes(questions=6, harmed=1, learned=2)
    assert ruling.changes(BEFORE, BEFORE) == ruling.Changes(6, 0, 0)


@pytest.mark.parametrize("after", [AFTER[:5], [*AFTER[:5], row(9, [1], 0)], []])
def test_evaluations_of_other_questions_are_refused(after):
    with pytest.raises(InputError, match="the same questions"):
        ruling.changes(BEFORE, after)


def test_the_partition_by_hand(tmp_path: Path):
    """From 0.5: random labels 0.4, the vote 0.7, the truth 0.9. Null -0.1, elicit 0.3, design 0.2, in all 0.4. From
    0.4: 0.2, 0.7 and 0.8, so -0.2, 0.5 and 0.1."""
    whole = ruling.partition(base=0.5, random=0.4, majority=0.7, true=0.9)
    parts = (whole.null, whole.elicit, whole.design)
    assert parts == pytest.approx((-0.1, 0.3, 0.2)) and sum(parts) == pytest.approx(0.9 - 0.5)
    found = results(tmp_path)
    table = ruling.partition_table(found)
    cells = ["-0.150 (-0.200 to -0.100)", "+0.400 (+0.300 to +0.500)", "+0.150 (+0.100 to +0.200)"]
    assert table.rows == [["belief", "held_out", *cells], ["belief", "trained on", *cells]]
    del found["belief", "random"]
    assert ruling.partition_table(found).rows[0] == ["belief", "held_out", "-", "-", "-"]


def test_seeds_are_paired_in_the_partition(tmp_path: Path):
    """The oracle lacks seed 0, and has its seeds in another order."""
    found = results(tmp_path)
    found["belief", "oracle"] = Group((made(tmp_path / "two", 2, (0.1, 0.3)), found["belief", "oracle"].runs[1]))
    [only] = ruling.partitions(found, "belief", "data")
    assert (only.null, only.elicit, only.design) == pytest.approx((-0.2, 0.5, 0.1))


def test_tokens_are_those_of_the_steps_and_of_the_start_model_s_votes(tmp_path: Path):
    run = made(tmp_path / "run", 0, (0.5, 0.6), tokens=70)
    assert ruling.tokens_of(run) == 140
    write_jsonl(tmp_path / "run" / "labels.jsonl", [{"samples": [{"tokens": 3}, {"tokens": 4}]}] * 2)
    assert ruling.tokens_of(run) == 154


def test_the_tables_by_hand(tmp_path: Path):
    """Of six questions two are harmed in both seeds, a third; one is learned. The vote gains 0.2 and 0.3."""
    found = results(tmp_path)
    table = ruling.family_table(found, "belief")
    assert table.head == ["method", "questions", "avg@16 before", "avg@16 after", "gain", "harmed", "learned",
                          "pass@16 before", "pass@16 after", "tokens"]  # fmt: skip
    assert table.rows[0] == [
        "majority", "held_out", "0.450 (0.400 to 0.500)", "0.700 (0.700 to 0.700)", "+0.250 (+0.200 to +0.300)",
        "2 of 6: 0.333 (0.333 to 0.333)", "1 of 6: 0.167 (0.167 to 0.167)", "0.225 (0.200 to 0.250)",
        "0.350 (0.350 to 0.350)", "200",
    ]  # fmt: skip
    assert [line[:2] for line in table.rows[1:3]] == [["majority", "trained on"], ["random", "held_out"]]
    gains = ruling.gains_table(found, "held_out")
    assert gains.rows == [["majority", "+0.250 (0.333)"], ["random", "-0.150 (0.333)"], ["oracle", "+0.400 (0.333)"]]
    assert ruling.family_table(found, "noise").rows == []


def test_the_rule_of_a_family_is_chosen_on_the_others(tmp_path: Path):
    """Each run of `made` harms 2 questions of 6 and learns 1; one that has not changed harms none."""

    def group(name: str, gain: float, *, harms: bool) -> Group:
        run = made(tmp_path / name, 0, (0.5, 0.5 + gain))
        if not harms:
            write_jsonl(run.path / "rollouts" / "eval_held_out_000002.jsonl", BEFORE)
        return Group((run,))

    plan = {
        ("one", "majority"): (0.1, True), ("one", "gate"): (0.2, False), ("one", "soft"): (0.3, False),
        ("two", "majority"): (0.4, True), ("two", "gate"): (0.1, True), ("two", "soft"): (0.0, False),
        ("three", "majority"): (0.4, False), ("three", "gate"): (0.3, False), ("three", "soft"): (0.1, True),
    }  # fmt: skip
    results = {arm: group("-".join(arm), gain, harms=harms) for arm, (gain, harms) in plan.items()}
    rules = ["majority", "gate", "soft"]
    # On the others of `one` each harms 2; majority gains the most. Of `two` majority and soft harm 2, and gate none.
    assert ruling.elsewhere(results, rules, "held_out") == {"one": "majority", "two": "gate", "three": "soft"}
    assert ruling.elsewhere(results, ["majority", "oracle"], "held_out") == {}
    only = {arm: group for arm, group in results.items() if arm[0] == "one"}
    assert ruling.elsewhere(only, rules, "held_out") == {}
    *methods, chosen = ruling.harm_table(results, rules, "held_out").rows
    assert methods == [
        ["majority", "+0.300", "4.0", "1.00", "2.0"], ["gate", "+0.200", "2.0", "0.50", "1.0"],
        ["soft", "+0.133", "2.0", "0.50", "1.0"],
    ]  # fmt: skip
    assert chosen[0].endswith("(one: majority, two: gate, three: soft)")
    assert chosen[1:] == ["+0.100", "6.0", "1.50", "3.0"]


def test_the_picture_has_a_bar_of_each_gain_and_each_harm(tmp_path: Path):
    """A gain of 1 is 90 pixels: 0.25 to the right and 0.15 to the left of the middle, which is at 120 + 105."""
    drawn = ElementTree.fromstring(ruling.picture(results(tmp_path), "held_out"))
    bars = [{key: each.get(key) for key in ("class", "x", "width")} for each in drawn.iter() if len(each) == 1]
    assert bars[0] == {"class": "k0", "x": "225.0", "width": "22.5"}
    assert bars[1] == {"class": "k1", "x": "195.0", "width": "30.0"}
    assert bars[2] == {"class": "k0", "x": "211.5", "width": "13.5"} and len(bars) == 6


# ---------------------------------------------------------------------- which runs are made


def test_all_methods_sample_equally_many_responses(tmp_path: Path):
    """64 questions x 16 votes in each of 6 episodes, or in 5 and once by the start model."""
    options = referee.parse(["--out", str(tmp_path), "--methods", ",".join(referee.METHODS), "--seeds", "1,0"])
    found = referee.runs_of(options)
    budgets = runs.check(found)
    assert len(found) == 4 * 16 * 2  # two of the 17 methods are the same
    assert [run.seed for run in found] == [1] * 64 + [0] * 64
    for run in found:
        budget = budgets[run.name]
        before = 64 * 16 if run.changes.get("reward.label") == "offline" else 0
        assert budget.steps * budget.responses + before == 6 * 64 * 16 and budget.evaluations == 2
        assert run.config == f"configs/families.py:{run.arm[0]}"
    whole = referee.runs_of(referee.parse([]))
    assert len(whole) == 14 * 4 * 3 and not any("published" in run.name for run in whole)


def test_what_published_forms_are(tmp_path: Path):
    options = referee.parse(["--out", str(tmp_path)])
    assert referee.run_of(options, "belief", "guard_published", 0) == referee.run_of(options, "belief", "majority", 0)
    changes = referee.run_of(options, "belief", "scrl_published", 0).changes
    assert changes == {"judge.rule": "scrl", "judge.no_answer_reward": -1.0}
    fewer = referee.parse(["--config.episodes=3"])
    assert referee.run_of(fewer, "noise", "offline", 0).changes == {"episodes": 2, "reward.label": "offline"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--families", "noise,nose"], ("--families", "'nose'", "half_known")),
        (["--methods", "majority,majority"], ("--methods", "each once")),
        (["--methods", "ttrl"], ("'ttrl'", "vote_share")),
        (["--seeds", "0,0"], ("--seeds", "each once")),
        (["--config.seed=1"], ("--seeds",)),
        (["--config.judge.rule=gate"], ("judge.rule", "--methods")),
        (["--config.data.path=nowhere.jsonl"], ("nowhere.jsonl",)),
    ],
)
def test_what_cannot_be_refereed_is_refused(tmp_path: Path, arguments, words):
    with pytest.raises(InputError) as error:
        referee.main([*arguments, "--out", str(tmp_path / "out")])
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "out").exists()


def test_families_are_those_that_are_made():
    assert set(make_families.FAMILIES) == set(referee.FAMILIES)


# ---------------------------------------------------------------------- from end to end

FEW = [
    "--config.data.limit=8", "--config.episodes=3", "--config.rollout.votes=4", "--config.train.samples=4",
    "--config.eval.samples=4", "--config.log.tensorboard=False",
]  # fmt: skip


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/referee.py", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_family_and_two_methods_from_end_to_end(tmp_path: Path):
    """The second command adds a method, and runs nothing again."""
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--families", "belief", "--seeds", "3", *FEW]
    first = call(*arguments, "--methods", "majority")
    assert first.returncode == 0, first.stderr
    made_first = {path: path.stat().st_mtime_ns for path in (out / "belief-majority-seed3").rglob("*")}
    done = call(*arguments, "--methods", "majority,offline")
    assert done.returncode == 0, done.stderr
    assert "1 of 2 runs are missing" in done.stdout and done.stdout.count("is there already") == 1
    assert {path: path.stat().st_mtime_ns for path in (out / "belief-majority-seed3").rglob("*")} == made_first
    table = list(csv.DictReader((out / "referee-belief.csv").open()))
    assert [line["method"] for line in table] == ["majority"] * 2 + ["offline"] * 2
    for line in table:
        where = out / f"belief-{line['method']}-seed3"
        summary = json.loads((where / "summary.json").read_text())
        prefix = "held_out_" if line["questions"] == "held_out" else ""
        before, after = (summary[f"{prefix}{when}"] for when in ("before", "after"))
        assert line["gain"] == f"{after['avg@4'] - before['avg@4']:+.3f}"
        assert line["pass@4 after"] == f"{after['pass@4']:.3f}"
        assert " of 8: " in line["harmed"] and summary["steps"] == (3 if line["method"] == "majority" else 2)
    tokens = [int(line["tokens"]) for line in table if line["tokens"]]
    assert len(tokens) == 2 and all(3 * 8 * 4 * 8 < each <= 3 * 8 * 4 * 14 for each in tokens)
    assert "| belief | held_out | - | - | - |" in (out / "REFEREE.md").read_text()
    ElementTree.parse(out / "referee.svg")

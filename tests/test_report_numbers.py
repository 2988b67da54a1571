"""Hand-worked: what the report computes: scores of questions, intervals, means over steps, charts, sentences."""

import json
import math

import numpy as np
import pytest
from reports import ballot, made_run, numbers

from ttrl_jax.report import chart, curves, data, metrics, models, result, scores, svg
from ttrl_jax.report.chart import Bars, Chart, Line
from ttrl_jax.run.metrics import write_json, write_jsonl


def test_scores_by_hand():
    rows = [ballot("a", 3), ballot("b", 1), ballot("c", 0)]
    found = scores.scores(rows)
    a, b, c = (("a", "question a"), ("b", "question b"), ("c", "question c"))
    assert found["avg"] == {a: 0.75, b: 0.25, c: 0.0}
    assert found["maj"] == {a: 1.0, b: 0.25, c: 0.0}  # b: four answers of one vote each
    assert found["pass"] == {a: 1.0, b: 1.0, c: 0.0}
    assert scores.scores([{"truth": "1"}]) == {} and scores.scores([]) == {"avg": {}, "maj": {}, "pass": {}}


def test_the_interval_is_that_of_a_bootstrap():
    """Of many questions it is the mean and 1.96 standard errors, of a constant the constant, of few questions none."""
    values = np.random.default_rng(7).normal(0.3, 0.2, 500)
    found = scores.interval(list(values))
    error = 1.96 * values.std() / math.sqrt(500)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - error, found.mean + error), abs=0.002)
    assert scores.interval(list(values)) == found  # seeded
    assert scores.interval([0.25] * 9) == scores.Interval(0.25, 0.25, 0.25)
    assert scores.interval([0.2, 0.4]) == scores.Interval(pytest.approx(0.3))


def test_the_bootstrap_is_paired():
    """Questions that all gain the same have no uncertain gain, however different they are."""
    before = {f"q{i}": i / 20 for i in range(10)}
    assert scores.change(before, {name: x + 0.5 for name, x in before.items()}) == scores.Interval(
        pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5)
    )
    assert scores.change(before, {"q0": 1.0}) is None and scores.change({}, {}) is None


def test_the_sentence_has_the_interval_of_its_questions(tmp_path):
    run = made_run(tmp_path / "run", {0: numbers(0.25, 0.3), 8: numbers(0.5, 0.8)}, questions=16, finished=True)
    hits = {0: [1] * 16, 8: [1, 3] * 8}  # avg@4 0.25 and 0.5
    for step, each in hits.items():
        write_jsonl(run / "rollouts" / f"eval_data_{step:06}.jsonl", [ballot(f"{i}", n) for i, n in enumerate(each)])
    [group] = data.by_seed([data.read_run(run, "run")])
    said = result.sentence(group)
    expected = scores.interval([(n - 1) / 4 for n in hits[8]])
    assert said == (
        f"avg@4 on the 16 questions trained on: 0.250 → 0.500, +0.250 [{expected.low:+.3f}, {expected.high:+.3f}]."
    )
    assert 0.1 < expected.low < 0.16 and "10,000 resamples" in result.uncertainty([group])
    avg = curves.accuracy([group], "data").lines[0]
    assert avg.points == [(0, 0.25), (8, 0.5)] and avg.ranges[0] == (0.25, 0.25)
    facts = dict(result.facts(group.runs[0]))
    assert facts["time"] == "1 h 2 min in all" and facts["questions"] == "16 trained on: builtin:sums.train"
    assert "LoRA" not in facts
    group.runs[0].settings |= {"lora.rank": 16}
    assert dict(result.facts(group.runs[0]))["LoRA"] == "rank 16, 10 times the learning rate"
    assert "certificate" not in facts
    ends = json.loads((run / "summary.json").read_text())
    write_json(run / "summary.json", ends | {"certificate": {"returned": "start", "canaries": 32}})
    facts = dict(result.facts(data.read_run(run, "run")))
    assert facts["certificate"] == "returns the start model, by 32 canaries"
    # Generations of another evaluation than the metrics': no interval is better than a wrong one.
    write_jsonl(run / "rollouts" / "eval_data_000008.jsonl", [ballot(f"{i}", 4) for i in range(16)])
    assert result.sentence(group).endswith("0.250 → 0.500, +0.250.") and result.uncertainty([group]) == ""


def test_sentences_without_truths_and_without_training(tmp_path):
    blind = made_run(tmp_path / "blind", {0: {"majority_ratio": 0.4}, 3: {"majority_ratio": 0.7}}, finished=True)
    still = made_run(tmp_path / "still", {0: numbers(0.2, 0.3)}, finished=True)
    (still / "metrics.jsonl").write_text('{"step": 0, "eval/data/avg@4": 0.2}\n')
    said = [result.sentence(group) for group in data.by_seed(data.read_runs([str(blind), str(still)]))]
    assert said == [
        "majority ratio on the questions trained on: 0.400 → 0.700, +0.300.",
        "avg@4 on the questions trained on: 0.200 at the start.",
    ]


def test_means_over_episodes(tmp_path):
    """64 questions, 8 a step: the mean of 8 steps stands at their middle, with two standard errors."""
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)}, questions=64)
    write_jsonl(run / "metrics.jsonl", [{"step": s, "vote/majority_ratio": s / 100} for s in range(28)])
    [group] = data.by_seed([data.read_run(run, "run")])
    [line] = curves._blocks(group, "vote/majority_ratio", "ratio", 3)
    assert line.name == "ratio"
    assert [x for x, _ in line.points] == [3.5, 11.5, 19.5, 25.5]
    assert [y for _, y in line.points] == pytest.approx([0.035, 0.115, 0.195, 0.255])
    error = 2 * np.std([s / 100 for s in range(8, 16)], ddof=1) / math.sqrt(8)
    assert line.ranges[1] == pytest.approx((0.115 - error, 0.115 + error))
    assert line.ranges[0] == pytest.approx((0.035 - error, 0.035 + error))


def test_two_ways_to_sample_are_named(tmp_path):
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3), 4: numbers(0.4, 0.3)})
    read = data.read_run(run, "run")
    same = curves.accuracy(data.by_seed([read]), "data").note
    read.settings["eval.temperature"] = 0.6
    other = curves.accuracy(data.by_seed([read]), "data").note
    assert other == same + " Training samples at temperature 1.0, evaluations at 0.6."


def test_every_metric_has_one_place():
    names = [name for group in metrics.GROUPS.values() for name in group]
    assert len(names) == len(set(names))
    found = metrics.groups_of(["step", "eval/data/avg@4", "vote/tie_rate", "critic/loss", "update/kl"])
    assert {title: list(group) for title, group in found.items()} == {
        "Votes": ["vote/tie_rate"],
        "Update": ["update/kl"],
        "Everything else": ["critic/loss"],
    }


def test_five_digits_are_enough_for_a_page():
    assert [chart.short(x) for x in (1.0, 0.123456789, 1234567.0, 3e-05, -0.0)] == [1, 0.12346, 1234600, 3e-05, 0]


def test_thinned_lines_are_means():
    points = [(float(i), float(i % 2)) for i in range(10)]
    assert chart.thinned(points, 10) == points
    assert chart.thinned(points, 5) == [(0.5, 0.5), (2.5, 0.5), (4.5, 0.5), (6.5, 0.5), (8.5, 0.5)]
    line = Line("a", 0, points, ranges=[(y - 1, y + 2) for _, y in points], episode=5)
    [made] = chart.plain(Chart("c", "c", [line], "share"), most=5)["lines"]
    assert made["low"] == [-0.5] * 5 and made["high"] == [2.5] * 5 and "episode" not in made


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.31, 0.3100000001], [5.0], [0.0], [-3.0, 1e6], [1e-9, 2e-9], [-2.0]])
def test_ticks_enclose_the_values(values):
    marks = svg.ticks(values)
    slack = 1e-8 * (marks[-1] - marks[0])
    assert marks[0] <= min(values) + slack and max(values) <= marks[-1] + slack and 3 <= len(marks) <= 8


def test_two_evaluations_are_not_joined():
    """Nothing was measured between them."""
    two, three = (Line("a", 0, [(step, 0.5) for step in range(n)], "dots") for n in (2, 3))
    drawn = [svg.picture([Chart("c", "t", [line], "share", True)], most=9).count("<polyline") for line in (two, three)]
    assert drawn == [0, 1]


def test_a_bar_is_as_high_as_its_value():
    made = svg.picture([Bars("b", "t", ["x", "y"], [("one", [0.5, None]), ("two", [1.0, 0.0])], "share")], most=9)
    heights = [float(part.split('"')[0]) for part in made.split(' height="')[1:] if "k" not in part.split('"')[0]]
    bars = heights[1:]  # the first is the background
    full = svg.HEIGHT - svg.BOTTOM - svg.TOP
    assert bars == pytest.approx([full / 2, full, 0.0])


def test_models_take_the_greatest_k():
    assert models._of_kind({"avg@4": 0.1, "avg@16": 0.2}, "avg") == 0.2
    assert models._of_kind({"greedy": 0.3}, "greedy") == 0.3 and models._of_kind({}, "maj") is None

"""Semantics: a study refuses what it lacks before it starts, runs nothing twice, and its tables say what runs say."""

import csv
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from test_every_config import turkish_model

from ttrl_jax.data import turkish as builtin
from ttrl_jax.errors import InputError
from ttrl_jax.report.data import Group, read_run
from ttrl_jax.run.metrics import write_json, write_jsonl

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import study  # noqa: E402
from studies import curves, gains, options, printed, runs, shown, turkish  # noqa: E402


def asked(tmp_path: Path, *arguments: str) -> tuple[str, options.Options]:
    return study.parse([*arguments, "--out", str(tmp_path / "out")])


def made(where: Path, settings: dict[str, Any], rows: list[dict[str, Any]], **more: Any) -> Path:
    """A finished run with these rows; settings: section -> key -> value, of the config."""
    config = {"config": {"seed": 0} | settings, "model": {}, **more}
    write_json(where / "config.json", config)
    write_jsonl(where / "metrics.jsonl", [{"step": step} | row for step, row in enumerate(rows)])
    ends = [{name.split("/")[2]: x for name, x in rows[i].items() if name.startswith("eval/data/")} for i in (0, -1)]
    summary = {"before": ends[0], "after": ends[1], "verdict": "", "diagnosis": "", "steps": len(rows) - 1}
    write_json(where / "summary.json", summary | {"seconds": 100.0, "params_sha256": ""})
    return where


def group(tmp_path: Path, name: str, *courses: list[dict[str, float]], **more: Any) -> Group:
    """The runs of an arm, one of each seed; courses: the rows of each."""
    paths = [made(tmp_path / f"{name}{seed}", {}, rows, **more) for seed, rows in enumerate(courses)]
    return Group(tuple(read_run(path, path.name) for path in paths))


def ends(before: float, after: float, **more: float) -> list[dict[str, float]]:
    """Rows of a run of two steps that was evaluated before and after."""
    return [{"eval/data/avg@4": before, **more}, {}, {"eval/data/avg@4": after, **more}]


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["labels", "--small", "--config.model.path=/nowhere/model"], ("lacks its model", "/nowhere/model")),
        (["labels", "--small", "--config.data.path=nowhere.jsonl"], ("lacks its questions", "nowhere.jsonl")),
        (["labels", "--small", "--config.eval.tasks=x=nowhere.jsonl"], ("lacks its questions", "nowhere.jsonl")),
        (["table1", "--small", "--models", "ways,Qwen/Qwen2.5-7B"], ("ways, noise, noisy", "'Qwen/Qwen2.5-7B'")),
        (["table1", "--tasks", "nothing", "--models", "m"], ("there is no task 'nothing'",)),
        (["bounds", "--small", "--config.reward.label=random"], ("reward.label", "differ in")),
        (["turkish"], ("lacks its questions", "prepare_word_problems.py")),
        (["turkish", "--small", "--models", "m,n"], ("one model", "m, n")),
        (["labels", "--small", "--seeds", "0,0"], ("--seeds", "each once")),
        (["labels", "--small", "--config.seed=3"], ("--seeds",)),
        (["labels", "--small", "--config.no.key=3"], ("no.key",)),
        (["labels", "--small", "--config.episodes=many"], ("episodes='many'", "wrong type")),
        (["labels", "--small", "--list", "episodes=1"], ("ablations",)),
        (["ablations", "--small", "--list", "episode=1"], ("'episode=1'", "KEY=A,B")),
    ],
)
def test_what_cannot_be_made_is_refused_before_it_starts(tmp_path: Path, arguments, words):
    with pytest.raises(InputError) as error:
        study.main([*arguments, "--out", str(tmp_path / "out")])
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_of_the_hub_that_is_not_here_is_refused(tmp_path: Path):
    done = call("table1", "--out", str(tmp_path / "out"), HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "Qwen2.5-Math-1.5B-aime-seed0 lacks its model: Qwen/Qwen2.5-Math-1.5B is not here" in done.stderr


# ---------------------------------------------------------------------- what is run


@pytest.mark.parametrize("name", [name for name in study.STUDIES if name != "turkish"])
def test_the_small_runs_of_each_study_have_models_and_questions(name: str, tmp_path: Path):
    _, given = asked(tmp_path, name, "--small", "--seeds", "0,1")
    study.STUDIES[name].before(given)
    found = study.STUDIES[name].runs(given)
    budgets = runs.check(found)
    assert len(budgets) == len(found) and len({run.arm for run in found}) * 2 == len(found)  # two seeds of each
    for run in found:
        arguments = run.command(given.out)
        assert f"--config.seed={run.seed}" in arguments and arguments[-1] == str(given.out / run.name)
        config = runs.config_of(run)
        assert budgets[run.name].steps == config.episodes * -(-(64 if name != "levels" else 32) // 8) or name in (
            "levels", "ablations",
        )  # fmt: skip


def test_the_runs_of_the_paper(tmp_path: Path):
    """Models and tasks are those that the tables name, and each cell with a printed number has a run."""
    for name, count in (("table1", 6 * 4), ("table2", 6 * 3), ("table4", 2 * 3)):
        found = study.STUDIES[name].runs(asked(tmp_path, name)[1])
        assert len(found) == count and all(printed.cell(name, *run.arm) for run in found)
        assert {run.config for run in found} == {f"configs/{task}.py:{model}" for model, task in (r.arm for r in found)}
    levels = study.STUDIES["levels"].runs(asked(tmp_path, "levels")[1])
    assert [run.changes["data.level"] for run in levels] == [1, 2, 3, 4, 5]
    thinking = study.STUDIES["figure3"].runs(asked(tmp_path, "figure3")[1])
    assert [run.changes.get("prompt.thinking") for run in thinking] == [True, None]
    own = study.STUDIES["table1"].runs(asked(tmp_path, "table1", "--tasks", "math500=m.json,gpqa")[1])
    assert own[0].changes["data.path"] == "m.json" and own[0].changes["data.question_column"] == "prompt"
    assert own[1].changes["data.subset"] == "gpqa_diamond"


def test_printed_averages_are_the_means_of_their_rows():
    """So a number that was copied wrongly would be seen: the averages are printed to a tenth."""
    for row in printed.printed()["tables"]["table1"].values():
        for end in (0, 1):
            mean = fmean(pair[end] for task, pair in row.items() if task != "average")
            assert mean == pytest.approx(row["average"][end], abs=0.0501)


def test_settings_of_ablations(tmp_path: Path):
    _, crossed = asked(tmp_path, "ablations", "--grid", "episodes=1,2", "--grid", "rollout.temperature=0.5,2")
    found = curves.settings_of(crossed)
    assert found[0] == {} and found[1:] == [{"episodes": e, "rollout.temperature": t} for e in (1, 2) for t in (0.5, 2)]
    _, listed = asked(tmp_path, "ablations", "--list", "episodes=1,2", "--list", "algorithm=ppo")
    assert curves.settings_of(listed) == [{}, {"episodes": 1}, {"episodes": 2}, {"algorithm": "ppo"}]
    names = [run.name for run in curves.ablation_runs(asked(tmp_path, "ablations", "--small")[1])]
    assert len(set(names)) == 9 and "train.learning_rate_0.001-seed0" in names


def run_of(**changes: Any) -> runs.Run:
    return runs.Run("one", ("one",), 0, "configs/no_such.py", changes)


def test_a_finished_run_is_not_run_again(tmp_path: Path, capsys):
    """Its config does not exist: were it started, its exit code would be 2."""
    made(tmp_path / "one", {"episodes": 3}, ends(0.2, 0.4))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    budget = {"one": runs.Budget(2, 64, 2, 256)}
    assert runs.execute([run_of(episodes=3)], budget, tmp_path) == 0
    said = capsys.readouterr().out
    assert "one is there already" in said and "0 runs to train" in said
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()} == before
    assert runs.execute([runs.Run("two", ("two",), 0, "configs/no_such.py")], {"two": budget["one"]}, tmp_path) == 2
    with pytest.raises(InputError, match="made with episodes=3, and 4 is asked for"):
        runs.execute([run_of(episodes=4)], budget, tmp_path)
    (tmp_path / "one" / "summary.json").unlink()
    assert not runs.finished(run_of(episodes=3), tmp_path)


def test_other_commands_run_once(tmp_path: Path, capsys):
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.mkdir()
    command = ("no_such_module",)
    assert runs.follow([runs.Command("a", command, there)]) == 0
    assert runs.follow([runs.Command("a", command, there), runs.Command("b", command, missing)]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == ["== a is there already", "== b"]


def test_how_long_runs_take_by_hand(tmp_path: Path):
    """Steps of 9 (which compiles), 2, 4 and 3 seconds of 64 responses; evaluations of 5 and 6 seconds of 30 responses.
    A response takes 3 / 64 s, an evaluated one 6 / 30 s. The rest of 100 s, of which three evaluations take 3 * 6, is
    100 - 4 * 3 - 3 * 6 = 70 s of start. After three steps the only evaluation, 5 s, has compiled: a response of it
    takes no longer than the 1 / 64 s that sampling takes, and the fastest of the two others, 2 s, counts."""
    times = ((9, 5), (2, 0.001), (4, 6), (3, 0))
    rows = [
        {"time/evaluate": asked, "time/sample": seconds / 2, "time/vote": 0.0, "time/update": seconds / 2}
        for seconds, asked in times
    ]
    where = made(tmp_path / "one", {}, [*rows, {}])
    pace = runs.pace_of(read_run(where, "one"), runs.Budget(4, 64, 3, 30))
    assert pace == runs.Pace(pytest.approx(70), 3 / 64, 6 / 30)
    assert runs.left([pace], [runs.Budget(10, 32, 2, 60)] * 2) == pytest.approx(2 * (70 + 10 * 1.5 + 2 * 12))
    (where / "summary.json").unlink()
    write_jsonl(where / "metrics.jsonl", [{"step": i} | rows[j] for i, j in enumerate((0, 1, 3))])
    early = runs.pace_of(read_run(where, "one"), runs.Budget(4, 64, 3, 30), elapsed=40)
    assert early.response == 2 / 64 and early.evaluated == 1 / 64
    assert early.start == pytest.approx(40 - 3 * 2 - 30 * 1 / 64)
    write_jsonl(where / "metrics.jsonl", [{"step": i} | row for i, row in enumerate(rows[:2])])
    assert runs.pace_of(read_run(where, "one"), runs.Budget(4, 64, 3, 30)) is None
    assert [runs.spoken(x) for x in (80, 100, 5000, 7200)] == ["80 s", "2 min", "83 min", "2.0 h"]


# ---------------------------------------------------------------------- tables


def test_gains_by_hand(tmp_path: Path):
    """Seeds that end at 0.4 and 0.6, and one at 0.3; the mean of both tasks goes from 0.15 to 0.4."""
    model = "Qwen/Qwen2.5-Math-1.5B"
    results = {
        (model, "aime"): group(tmp_path, "a", ends(0.2, 0.4), ends(0.2, 0.6)),
        (model, "gpqa"): group(tmp_path, "b", ends(0.1, 0.3)),
        ("other", "aime"): group(tmp_path, "c", ends(0.0, 0.3)),
    }
    table = gains.table_of("table1", results, kind="avg")
    assert table.rows == [
        [model, "aime", "20.0", "50.0", "+30.0", "+150.0 %", "7.7 -> 15.8"],
        [model, "gpqa", "10.0", "30.0", "+20.0", "+200.0 %", "24.9 -> 26.1"],
        [model, "mean of 2", "15.0", "40.0", "+25.0", "+166.7 %", "23.5 -> 41"],
        ["other", "aime", "0.0", "30.0", "+30.0", "-", "-"],
        ["other", "mean of 1", "0.0", "30.0", "+30.0", "-", "-"],
    ]
    bars = gains.bars_of("table1", results, kind="avg")
    assert bars.groups == ["aime", "gpqa"]
    assert [name for name, _ in bars.series][2:] == ["other: before", "other: after"]
    assert [values for _, values in bars.series] == [[0.2, 0.1], [0.5, 0.3], [0.0, None], [0.3, None]]


def test_levels_and_transfer_by_hand(tmp_path: Path):
    _, given = asked(tmp_path, "levels", "--small")
    rows = [row | {"eval/data/response_length": x} for row, x in zip(ends(0.25, 0.5), (20, 0, 10), strict=True)]
    levels = {("m/Qwen2.5-Math-1.5B", "level 2"): group(tmp_path, "l", rows)}
    accuracy, tokens = gains.show_levels(levels, given).tables
    assert accuracy.rows[0][2:] == ["25.0", "50.0", "+25.0", "+100.0 %", "33 -> 76.2"]
    assert tokens.rows[0][2:] == ["20.0", "10.0", "-10.0", "-50.0 %", "2125 -> 614"]
    crossed = {}
    for name, other, own, far in (("x", "y", 0.6, 0.3), ("y", "x", 0.9, 0.4)):
        course = [row | {f"eval/{other}/avg@4": far if i else 0.1} for i, row in enumerate(ends(0.2, own)) if row]
        crossed["m", name] = group(tmp_path, name, course)
    shown_ = gains.show_transfer(crossed, given)
    assert shown_.tables[0].rows == [
        ["m", "x", "20.0 -> 60.0", "10.0 -> 30.0"],
        ["m", "y", "10.0 -> 40.0", "20.0 -> 90.0"],
    ]
    series = dict(shown_.pictures["figure4-m"][0].series)
    assert series == {"start": [0.2, 0.2], "trained on x": [0.6, 0.3], "trained on y": [0.4, 0.9]}


def test_bounds_by_hand(tmp_path: Path):
    """From 0.2 to 0.5, where the oracle comes to 0.6: three quarters of its gain, and above the start's vote of 0.4."""
    _, given = asked(tmp_path, "bounds", "--small")
    vote = {"eval/data/maj@4": 0.4}
    results = {
        ("m", "t", "majority"): group(tmp_path, "a", ends(0.2, 0.5, **vote)),
        ("m", "t", "truth"): group(tmp_path, "b", ends(0.2, 0.6, **vote)),
    }
    [table] = curves.show_bounds(results, given).tables
    assert table.rows == [["m", "t", "20.0", "40.0", "50.0", "60.0", "above", "0.75"]]


def test_labels_by_hand(tmp_path: Path):
    """Two steps an episode, six steps; the hit ratio is missing in the last two, where no label was wrong."""
    _, given = asked(tmp_path, "labels", "--small")
    accuracy, hits = (0.0, 0.5, 0.5, 0.5, 1.0, 1.0), (0.8, 0.6, 0.5, 0.7)
    rows = [{"audit/label_accuracy": x, "vote/majority_ratio": 0.5, "audit/reward_accuracy": 0.9} for x in accuracy]
    for row, hit in zip(rows, hits, strict=False):
        row["audit/hit_ratio"] = hit
    config = {"questions": {"data": {"count": 4, "sha256": ""}}}
    found = group(tmp_path, "a", rows, **config)
    found.runs[0].settings["rollout.prompts"] = 2
    [table] = curves.show_labels({("Qwen/Qwen2.5-Math-7B", "aime"): found}, given).tables
    shown_ = {row[2]: row[3:] for row in table.rows}
    assert shown_["label accuracy"] == ["0.0", "25.0", "50.0", "100.0", "37"]
    assert shown_["hit ratio"] == ["80.0", "70.0", "55.0", "60.0", "-"]
    assert shown_["reward accuracy"][-1] == "92"


def test_the_readings_of_four_models(tmp_path: Path):
    """What the replication calls flexible is what stands in the tag; what also takes the last number stands apart."""
    numbers = {"no_answer_rate": 0.25}
    for reading, prefix in turkish.READINGS.items():
        value = 0.1 * (1 + list(turkish.READINGS).index(reading))
        numbers |= {f"{prefix}{kind}@{k}": value for kind in ("pass", "maj") for k in turkish.KS}
        if prefix:
            numbers[f"{prefix}valid_rate"] = value + 0.5
    table = turkish._readings("held_out", [turkish.models.Model("start", {"held_out": numbers})])
    assert [row[:4] for row in table.rows] == [
        ["start", "strict", "0.600", "0.100"],
        ["start", "flexible", "0.700", "0.200"],
        ["start", "tag only", "0.750", "0.300"],
        ["start", "or last number", "0.900", "0.400"],
    ]
    assert table.head[4:] == [f"{kind}@{k}" for kind in ("pass", "cons") for k in (1, 2, 4, 8)]


def test_seeds_of_the_replication_are_put_together(tmp_path: Path):
    """Hand-worked: means of two seeds, and each of them beside."""
    each = {
        name: [
            turkish.models.Model(name, {"held_out": {"pass@1": seed, "maj@8": 2 * seed}})
            for seed in (0.25, 0.5)
        ]
        for name in ("start", "merged")
    }  # fmt: skip
    assert turkish._mean("start", each["start"]).results == {"held_out": {"pass@1": 0.375, "maj@8": 0.75}}
    assert turkish._seeds("held_out", each, (3, 4)).rows == [
        [name, *cells]
        for name in ("start", "merged")
        for cells in (["accuracy", "0.250", "0.500"], ["cons@8", "0.500", "1.000"])
    ]
    given = options.Options(tmp_path, True, (), {}, (3, 4), {})
    runs_ = turkish.replication_runs(given)
    assert [(run.name, run.arm) for run in runs_] == [
        (f"{label}-seed{seed}", (label,)) for seed in (3, 4) for label in ("majority", "truth")
    ]
    made = [command.makes for command in turkish.merge_and_measure(given)]
    assert len(made) == len(set(made)) == 2 * (2 + 1 + 4)


def test_what_is_written(tmp_path: Path):
    table = shown.Table("one", "A title", ["a", "b"], [["1,5", "x"]])
    chart = shown.chart("c", "C", {"up": [(0, 0.1), (1, 0.4)], "nothing": []})
    text = shown.write(shown.Shown([table], {"c": [chart], "empty": [shown.chart("e", "E", {})]}), "study", tmp_path)
    assert text == (tmp_path / "study.md").read_text() == "A title\n\n| a | b |\n| --- | --- |\n| 1,5 | x |\n\n"
    assert list(csv.reader((tmp_path / "one.csv").open())) == [["a", "b"], ["1,5", "x"]]
    lines = [each for each in ElementTree.parse(tmp_path / "c.svg").iter() if "data-name" in each.attrib]
    assert [line.attrib["data-name"] for line in lines] == ["up"] and not (tmp_path / "empty.svg").exists()


# ---------------------------------------------------------------------- from end to end


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/study.py", *arguments]
    whole = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(command, cwd=ROOT, env=whole, capture_output=True, text=True, timeout=1500)


TINY = [
    "--config.eval.tasks=()", "--config.episodes=4", "--config.rollout.prompts=4", "--config.data.limit=4",
    "--config.rollout.votes=4", "--config.train.samples=4", "--config.train.micro_tokens=512",
    "--config.train.minibatch_prompts=4", "--config.eval.samples=2", "--config.eval.every=2",
]  # fmt: skip


@pytest.mark.slow
def test_a_study_from_end_to_end(tmp_path: Path):
    out = tmp_path / "out"
    arguments = ["figure6", "--small", "--seeds", "0,3", "--out", str(out), *TINY]
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    assert "2 runs to train: 8 steps, 176 responses" in done.stdout  # 2 x (4 x 16 + 3 x 8)
    assert done.stdout.count("left") == 1 or "in all" in done.stdout
    summaries = [json.loads((out / f"noise-sums-seed{seed}" / "summary.json").read_text()) for seed in (0, 3)]
    rows = list(csv.reader((out / "figure6.csv").open()))
    assert [row[2] for row in rows] == ["step", "0", "2", "4"]
    for row, when in ((rows[1], "before"), (rows[3], "after")):
        means = [fmean(summary[when][f"{kind}@2"] for summary in summaries) for kind in ("avg", "maj")]
        assert row[3:5] == [f"{100 * mean:.1f}" for mean in means]
    ElementTree.parse(out / "figure6.svg")
    made = {path: path.stat().st_mtime_ns for path in out.glob("noise-sums-seed*/**/*")}
    again = call(*arguments)
    assert again.returncode == 0 and again.stdout.count("is there already") == 2
    assert {path: path.stat().st_mtime_ns for path in out.glob("noise-sums-seed*/**/*")} == made


@pytest.mark.slow
@pytest.mark.timeout(1800)  # nine commands, one after the other
def test_the_replication_from_end_to_end(tmp_path: Path):
    """Questions are drawn from a file; two runs, their merge, and four models by every reading."""
    rows = [{"prompt": question, "answer": truth} for question, truth in builtin.train()[:20]]
    write_jsonl(tmp_path / "all.jsonl", [*rows, {"prompt": "Kaç eder?", "answer": "1/2"}])
    model, out = turkish_model(tmp_path), tmp_path / "out"
    arguments = [
        "turkish", "--small", "--models", str(model), "--tasks", f"turkish={tmp_path / 'all.jsonl'}",
        "--parts", "8,4", "--out", str(out), "--config.prompt.max_tokens=640", "--config.rollout.max_tokens=1",
        "--config.rollout.temperature=4.0", "--config.eval.temperature=4.0", "--config.eval.top_p=1.0",
        "--config.rollout.prompts=2", "--config.train.learning_rate=1e-3", "--config.episodes=1",
        "--config.rollout.votes=8", "--config.train.samples=8", "--config.train.minibatch_prompts=1",
        "--config.reward.allow_silence=True",
    ]  # fmt: skip
    done = call(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 trained on, 4 held_out" in (out / "turkish.md").read_text()
    results = {
        name: json.loads((out / "evaluations" / f"{name}-seed0" / "results.json").read_text())["results"]
        for name in turkish.MODELS
    }
    summary = json.loads((out / "truth-seed0" / "summary.json").read_text())
    assert results["start"]["data"] == summary["before"] and results["start"]["data"] != results["merged"]["data"]
    table = {(row[0], row[1]): row[2:] for row in csv.reader((out / "turkish-held_out.csv").open())}
    for name, found in results.items():
        numbers = found["held_out"]
        assert table[name, "strict"][0] == f"{numbers['strict_valid_rate']:.3f}"
        assert table[name, "tag only"][-1] == f"{numbers['maj@8']:.3f}"
    votes = [[json.loads(line)["question"] for line in (out / f"{label}-seed0" / "votes.jsonl").open()]
             for label in turkish.LABELS]  # fmt: skip
    assert votes[0] == votes[1] and sorted(votes[0]) == list(range(8))
    again = call(*arguments)
    assert again.returncode == 0 and again.stdout.count("is there already") == 2 + 3 + 4

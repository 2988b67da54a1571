"""Semantics: the report says what the run's files say, whatever text they hold and however much of them is there."""

import copy
import json
import re
import sys
from pathlib import Path

import pytest
from absl import flags

from configs import quickstart
from ttrl_jax import cli, commands, train
from ttrl_jax.report import __main__ as report
from ttrl_jax.report import data, page, rollouts, svg
from ttrl_jax.run.metrics import write_json, write_jsonl

ROOT = Path(__file__).parent.parent
ARGUMENTS = [
    f"--config={ROOT / 'configs' / 'quickstart.py'}", "--config.eval.tasks=()", "--config.episodes=2",
    "--config.rollout.prompts=4", "--config.data.limit=4", "--config.rollout.votes=8", "--config.train.samples=8",
    "--config.train.micro_tokens=192", "--config.train.minibatch_prompts=4", "--config.eval.samples=2",
    "--config.mesh.fsdp=8", "--config.log.generations_every=1", "--config.log.tensorboard=false",
]  # fmt: skip
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!-- \u2028 \ud800"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    where = tmp_path_factory.mktemp("report") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *ARGUMENTS, f"--workdir={where}"])
        code = cli.run(train.main, commands.TRAIN, doc=train.__doc__)
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    assert code == 0
    return where


@pytest.fixture
def call(fresh_flags, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Call the command on runs, --out in tmp_path -> (exit code, the page or None, stderr)."""

    def command(*runs: Path, out: str = "report.html") -> tuple[int, str | None, str]:
        fresh_flags()
        monkeypatch.setattr(sys, "argv", ["report", *map(str, runs), f"--out={tmp_path / out}"])
        code = cli.run(report.main, commands.REPORT)
        written = tmp_path / out
        return code, written.read_text("utf-8") if written.is_file() else None, capfd.readouterr().err

    return command


def questions_in(text: str) -> list[dict]:
    return json.loads(re.search(r'<script type="application/json" id="questions">(.*?)</script>', text, re.S)[1])


def numbers(avg: float, majority: float) -> dict[str, float]:
    return {"avg@4": avg, "maj@2": avg, "maj@4": avg + 0.1, "pass@4": avg + 0.2, "majority_ratio": majority}


def made_run(where: Path, evaluations: dict[int, dict[str, float]], label: str = "majority", seed: int = 0) -> Path:
    """A run folder with these evaluations, of its own questions, and three steps between."""
    config = quickstart.get_config().to_dict()
    config["reward"]["label"] = label
    config["seed"] = seed
    write_json(where / "config.json", {"config": config, "model": {}})
    rows = [
        {"step": step, "vote/majority_ratio": step / 10}
        | {f"eval/data/{name}": x for name, x in evaluations.get(step, {}).items()}
        for step in range(max(evaluations) + 1)
    ]
    write_jsonl(where / "metrics.jsonl", rows)
    return where


def generation(response: str, answer: str | None, kind: int | None, reward: float) -> dict:
    return {"response": response, "answer": answer, "class": kind, "tokens": 3, "truncated": False, "reward": reward}


def row(name: str, label: str, *, right: int | None, count: int = 4, response: str = "it is so") -> dict:
    """A question with `count` responses that all answer `label`."""
    samples = [generation(response, label, 0, 1.0)] * count
    question = {"id": name, "question": f"question {name}", "label": label, "counts": [count], "samples": samples}
    return question | {"truth": "9", "right": right}


def test_a_real_run_is_all_there(trained, call):
    code, text, err = call(trained)
    assert (code, err) == (0, "")
    summary = json.loads((trained / "summary.json").read_text())
    before, after = summary["before"]["avg@2"], summary["after"]["avg@2"]
    assert f"<td>avg@2</td><td>{before:.3f}</td><td>{after:.3f}</td><td>{after - before:+.3f}</td>" in text
    assert summary["verdict"] == "too short" and f"too short.</strong> {summary['diagnosis']}</p>" in text
    for title in [name for name in page.CURVES if "KL" not in name]:
        assert f"<figcaption>{title}</figcaption>" in text
    found = questions_in(text)
    assert {(question["set"], len(question["visits"])) for question in found} == {("training", 2), ("data", 2)}
    visits = [visit for question in found for visit in question["visits"]]
    assert {visit["step"] for visit in visits} == {0, 1, 2}
    assert all(len(visit["samples"]) == visit["votes"] for visit in visits)
    [written] = [
        each
        for each in map(json.loads, (trained / "rollouts" / "train_000001.jsonl").read_text().splitlines())
        if each["id"] == "2"
    ]
    [shown] = [question for question in found if question["set"] == "training" and question["id"] == "2"]
    assert shown["question"] == written["question"] and shown["truth"] == written["truth"]
    assert shown["question"] in shown["prompt"] != shown["question"]  # the model's own template is around it
    visit, sample = shown["visits"][1], written["samples"][3]
    assert visit["label"] == written["label"] and visit["share"] == max(written["counts"]) / 8
    assert visit["samples"][3][:4] == [sample[name] for name in ("response", "answer", "class", "reward")]
    accuracy = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    training = [question["visits"][1]["right"] for question in found if question["set"] == "training"]
    assert sum(training) / 4 == accuracy[1]["audit/label_accuracy"]


def test_the_diagnosis_of_each_run_comes_before_its_results(tmp_path, call):
    evil = made_run(tmp_path / "a<b>&", {0: numbers(0.2, 0.3), 3: numbers(0.2, 0.3)})
    rising = made_run(tmp_path / "rising", {0: numbers(0.2, 0.3), 48: numbers(0.9, 0.3)}, label="random")
    _, text, _ = call(evil, rising)
    head = text[: text.index("<h2>Before and after</h2>")]
    assert "<p><strong>a&lt;b&gt;&amp;: too short.</strong> Training steps so far: 4;" in head
    assert "<p><strong>rising: learning.</strong> The majority ratio rose from 0.150 to 4.650" in head


def test_nothing_is_loaded(trained, call):
    _, text, _ = call(trained)
    assert not re.search(r"https?://|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")|\bsrc=|fetch\(", text)


def test_several_runs_share_the_charts_and_bounds_are_drawn(tmp_path, call):
    method = made_run(tmp_path / "method", {0: numbers(0.2, 0.3), 4: numbers(0.6, 0.8)})
    oracle = made_run(tmp_path / "oracle", {0: numbers(0.2, 0.3), 4: numbers(0.75, 0.8)}, label="truth")
    code, text, _ = call(method, oracle)
    assert code == 0
    chart = next(figure for figure in text.split("<figure>") if "Accuracy, trained on" in figure)
    names = re.findall(r'<polyline class="([^"]*)" data-name="([^"]*)" points="([^"]*)"', chart)
    assert [(kind, name) for kind, name, _ in names] == [
        ("k0", "method: avg@4"),
        ("k0 dashed", "method: maj@4"),
        ("k0 bound", "maj@4 of the start model (method)"),  # once: it is the same for both
        ("k1", "oracle: avg@4"),
        ("k1 dashed", "oracle: maj@4"),
        ("k1 bound", "avg@4 at the end of oracle (oracle: true labels)"),
    ]
    heights = {name: [pair.split(",")[1] for pair in points.split()] for _, name, points in names}
    assert heights["maj@4 of the start model (method)"] == [heights["method: maj@4"][0]] * 2
    assert heights["avg@4 at the end of oracle (oracle: true labels)"] == [heights["oracle: avg@4"][-1]] * 2
    assert "<td>reward.label</td><td>majority</td><td>truth</td>" in text


def test_seeds_of_one_config_are_put_together(tmp_path, call):
    ends = [(0.2, 0.6), (0.3, 0.8), (0.1, 0.7)]
    seeds = [
        made_run(tmp_path / f"run-seed{i}", {0: numbers(first, 0.3), 4: numbers(last, 0.8)}, seed=i)
        for i, (first, last) in enumerate(ends)
    ]
    other = made_run(tmp_path / "random", {0: numbers(0.2, 0.3), 4: numbers(0.1, 0.3)}, label="random")
    _, text, _ = call(*seeds, other)
    assert "<th>run-seed* (3 seeds): before</th>" in text and "<th>random (control: random labels): before</th>" in text
    row = "<td>avg@4</td><td>0.200 (0.100 to 0.300)</td><td>0.700 (0.600 to 0.800)</td><td>+0.500</td>"
    assert row + "<td>0.200</td><td>0.100</td><td>-0.100</td>" in text
    chart = next(figure for figure in text.split("<figure>") if "Majority ratio" in figure)
    assert re.findall(r'class="(k\d)" data-name="([^"]*)"', chart) == [
        ("k0", "run-seed0"), ("k0", "run-seed1"), ("k0", "run-seed2"), ("k1", "random"),
    ]  # fmt: skip
    legend = re.findall(r'<span class="key"><i class="(k\d) "></i>([^<]*)</span>', chart)
    assert legend == [("k0", "run-seed* (3 seeds)"), ("k1", "random (control: random labels)")]
    bars = next(figure for figure in text.split("<figure>") if "pass@k, trained on, run-seed*" in figure)
    assert "before, pass@4: 0.400</title>" in bars and "after, pass@4: 0.900</title>" in bars
    accuracy = next(figure for figure in text.split("<figure>") if "Accuracy, trained on" in figure)
    assert accuracy.count("maj@4 of the start model (run-seed* (3 seeds))") == 2  # the line and its key


def test_last_chosen_and_best_are_apart(tmp_path, call):
    shown = {
        0: numbers(0.2, 0.3),
        2: numbers(0.7, 0.5),
        4: numbers(0.5, 0.9),
        6: numbers(0.4, 0.9),
        8: numbers(0.3, 0.6),
    }
    run = made_run(tmp_path / "run", shown)
    assert data.choices(data.read_run(run, "run")) == {"start": 0, "last": 8, "chosen": 4, "best": 2}
    _, text, _ = call(run)
    for title, step, avg in (("last", 8, 0.3), ("chosen", 4, 0.5), ("best", 2, 0.7)):
        assert f"<td>{title}</td><td>{step}</td><td>{avg:.3f}</td>" in text
    blind = made_run(tmp_path / "blind", {0: {"majority_ratio": 0.4}, 3: {"majority_ratio": 0.3}})
    assert data.choices(data.read_run(blind, "blind")) == {"start": 0, "last": 3, "chosen": 0}


def test_flipped_and_wrong(tmp_path):
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)})
    steps = [
        [row("a", "9", right=0), row("b", "8", right=None), row("c", "9", right=0)],
        [row("a", "9.0", right=0), row("b", "9", right=0), row("c", "7", right=None)],
    ]
    for step, rows in enumerate(steps):
        write_jsonl(run / "rollouts" / f"train_{step:06}.jsonl", rows)
    found = {question["id"]: question for question in rollouts.read_questions(data.read_run(run, "run"))}
    assert {name: (each["flipped"], each["wrong"]) for name, each in found.items()} == {
        "a": (False, False),  # 9 and 9.0 are one label
        "b": (True, False),
        "c": (True, True),
    }
    assert [visit["right"] for visit in found["b"]["visits"]] == [False, True]
    assert [sample[6] for sample in found["c"]["visits"][1]["samples"]] == [False] * 4


def test_wrong_is_what_was_rewarded_and_the_majority_stands_beside_it(tmp_path, call):
    """A question whose control's label is wrong, though the votes are right; and one of a run without `majority`."""
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)}, label="random")
    votes = row("a", "9", right=0, count=3)
    votes["samples"] = [*votes["samples"], generation("or so", "7", 1, 0.0)]
    rows = [votes | {"counts": [3, 1], "label": "7", "majority": "9"}, row("old", "9", right=0)]
    write_jsonl(run / "rollouts" / "train_000000.jsonl", rows)
    write_jsonl(run / "rollouts" / "train_000001.jsonl", [rows[0] | {"label": "9"}, rows[0] | {"majority": 7}])
    _, text, _ = call(run)
    assert "1 of the rows of rollouts/train_000001.jsonl cannot be read" in text
    mixed, old = questions_in(text)
    shown = ("label", "share", "majority", "majority_share", "right")
    assert [tuple(visit[name] for name in shown) for visit in mixed["visits"]] == [
        ("7", 0.25, "9", 0.75, False),
        ("9", 0.75, "9", 0.75, True),
    ]
    assert not mixed["flipped"] and not mixed["wrong"]  # the votes have not changed; the last label is right
    assert [tuple(visit[name] for name in shown) for visit in old["visits"]] == [("9", 1.0, "9", 1.0, True)]


def test_hostile_texts_are_only_data(tmp_path, call):
    run = made_run(tmp_path / "a<b>&", {0: numbers(0.2, 0.3)})
    evil = row("x", HOSTILE, right=None, response=HOSTILE) | {"id": HOSTILE, "question": HOSTILE, "truth": HOSTILE}
    write_jsonl(run / "rollouts" / "train_000000.jsonl", [evil])
    code, text, _ = call(run)
    assert code == 0
    assert "alert(1)" in text and "<script>alert" not in text and "<img" not in text and "<!--" not in text
    assert len(re.findall(r"<script\b", text)) == len(re.findall(r"</script>", text)) == 2
    [question] = questions_in(text)
    assert question["question"] == question["id"] == question["truth"] == HOSTILE
    assert question["visits"][0]["samples"][0][:2] == [HOSTILE, HOSTILE]
    assert "a&lt;b&gt;&amp;" in text and "<b>" not in text
    script = (ROOT / "ttrl_jax" / "report" / "page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|setAttribute", script)


def test_the_page_stays_under_8_mb_and_says_what_it_leaves_out(tmp_path, call):
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)})
    long = [row(f"{i}", "9", right=0, count=32, response="<" * 9_000) for i in range(40)]
    write_jsonl(run / "rollouts" / "train_000000.jsonl", long)
    write_jsonl(run / "rollouts" / "eval_data_000000.jsonl", [row(f"{i}", "9", right=0) for i in range(20_000)])
    code, text, _ = call(run)
    assert code == 0 and 4e6 < len(text.encode()) < 8e6
    assert "questions are shown, evenly spaced" in text and "generations are shown, evenly spaced" in text
    visits = [visit for question in questions_in(text) for visit in question["visits"]]
    said = re.search(r"(\d+) of (\d+) generations are shown", text)
    assert int(said[1]) == sum(len(visit["samples"]) for visit in visits)
    assert int(said[2]) == sum(visit["votes"] for visit in visits)
    assert "[... 1000 characters left out ...]" in rollouts.short("<" * 9_000)


def test_evenly_keeps_all_that_fits_and_spaces_the_rest():
    assert rollouts.evenly([9] * 10, 100) == list(range(10))
    assert rollouts.evenly([9] * 10, 50) == [1, 3, 5, 7, 9]
    kept = rollouts.evenly([9] * 1000, 1000)
    assert 95 <= len(kept) <= 100 and {b - a for a, b in zip(kept, kept[1:], strict=False)} <= {10, 11}
    assert rollouts.evenly([10_000], 100) == []


def test_fit_changes_nothing_that_it_is_given(tmp_path):
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)})
    write_jsonl(run / "rollouts" / "train_000000.jsonl", [row("a", "9", right=0)])
    questions = rollouts.read_questions(data.read_run(run, "run"))
    before = copy.deepcopy(questions)
    shown, notes = rollouts.fit(questions)
    assert questions == before == shown and notes == []


def test_a_run_that_is_half_there(tmp_path, call):
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3), 4: numbers(0.6, 0.8)})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('[1, 2]\n{"step": 5, "vote/majority_ratio": NaN}\n{"step": 6, "vote/maj')
    (run / "rollouts").mkdir()
    (run / "rollouts" / "train_000000.jsonl").write_text(json.dumps(row("a", "9", right=0)) + '\n{"id": "b"}\n{"id')
    (run / "rollouts" / "notes.jsonl").write_text("mine\n")
    (run / "summary.json").write_text("{")
    code, text, err = call(run)
    assert code == 0
    assert "2 of the lines of metrics.jsonl" in text and "summary.json is damaged" in text
    assert "2 of the rows of rollouts/train_000000.jsonl" in text and "not finished" in text
    assert "summary.json is damaged" in err
    assert [question["id"] for question in questions_in(text)] == ["a"]
    assert "<td>avg@4</td><td>0.200</td><td>0.600</td>" in text
    (run / "config.json").write_text("{")
    (run / "metrics.jsonl").unlink()
    code, text, _ = call(run)
    assert code == 0 and "config.json is damaged" in text and "no curves" in text and "<polyline" not in text


def test_a_summary_stands_in_for_lost_metrics(tmp_path, call):
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)})
    (run / "metrics.jsonl").unlink()
    summary = {"before": {"avg@4": 0.1}, "after": {"avg@4": 0.5}, "x_y_before": {"avg@4": 0.2}, "steps": 7}
    write_json(run / "summary.json", summary)
    assert data.read_run(run, "run").evaluations == {
        0: {"data": {"avg@4": 0.1}, "x_y": {"avg@4": 0.2}},
        7: {"data": {"avg@4": 0.5}},
    }
    _, text, _ = call(run)
    assert "<td>trained on</td><td>avg@4</td><td>0.100</td><td>0.500</td><td>+0.400</td>" in text


def test_what_cannot_be_reported_is_one_sentence(tmp_path, call):
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)})
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("")
    refused = [
        (call(), "RUN is missing"),
        (call(tmp_path), "is not a run folder"),
        (call(run, tmp_path / "nothing"), "is not a run folder"),
        (call(run, run), "given twice"),
        (call(run, out="report.txt"), ".html"),
        (call(run, out="folder.html"), "is a folder"),
        (call(run, out="file/report.html"), "cannot be written"),
    ]
    for (code, text, err), words in refused:
        assert code == 2 and text is None and words in err and err.count("\n") == 1, err


def test_runs_of_one_name_are_told_apart_by_path(tmp_path):
    paths = [str(made_run(tmp_path / name / "run", {0: numbers(0.2, 0.3)})) for name in "ab"]
    assert [run.name for run in data.read_runs(paths)] == paths


def test_thinned_lines_are_means():
    points = [(float(i), float(i % 2)) for i in range(10)]
    assert svg.thinned(points, 10) == points
    assert svg.thinned(points, 5) == [(0.5, 0.5), (2.5, 0.5), (4.5, 0.5), (6.5, 0.5), (8.5, 0.5)]


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.31, 0.3100000001], [5.0], [0.0], [-3.0, 1e6], [1e-9, 2e-9], [-2.0]])
def test_ticks_enclose_the_values(values):
    marks = svg.ticks(values)
    slack = 1e-8 * (marks[-1] - marks[0])
    assert marks[0] <= min(values) + slack and max(values) <= marks[-1] + slack and 3 <= len(marks) <= 8

"""Semantics: the report says what the run's files say, whatever text they hold and however much of them is there."""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import plotly.graph_objects as graph_objects
import pytest
from absl import flags
from reports import HOSTILE, call, charts_in, data_in, generation, made_run, numbers, row

from ttrl_jax import cli, commands, train
from ttrl_jax.report import data, fit, metrics
from ttrl_jax.run.metrics import write_json, write_jsonl

ROOT = Path(__file__).parent.parent
ARGUMENTS = [
    f"--config={ROOT / 'configs' / 'quickstart_sums.py'}", "--config.eval.tasks=()", "--config.episodes=2",
    "--config.rollout.prompts=4", "--config.data.limit=4", "--config.rollout.votes=8", "--config.train.samples=8",
    "--config.train.micro_tokens=192", "--config.train.minibatch_prompts=4", "--config.eval.samples=2",
    "--config.mesh.fsdp=8", "--config.log.generations_every=1", "--config.log.tensorboard=false",
    "--config.log.token_logps=true", "--config.reward.format=('think',)",
]  # fmt: skip


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
def write(fresh_flags, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Call the command on runs, --out in tmp_path -> (exit code, the page or None, stderr)."""

    def command(*runs: object, out: str = "report.html") -> tuple[int, str | None, str]:
        code, err = call(monkeypatch, fresh_flags, capfd, *runs, f"--out={tmp_path / out}")
        written = tmp_path / out
        return code, written.read_text("utf-8") if written.is_file() else None, err

    return command


def test_a_real_run_is_all_there(trained, write):
    code, text, err = write(trained)
    assert (code, err) == (0, "")
    summary = json.loads((trained / "summary.json").read_text())
    before, after = summary["before"]["avg@2"], summary["after"]["avg@2"]
    assert f"<td>avg@2</td><td>{before:.3f}</td><td>{after:.3f}</td><td>{after - before:+.3f}</td>" in text
    assert f"avg@2 on the 4 questions trained on: {before:.3f} → {after:.3f}, {after - before:+.3f}" in text
    assert summary["verdict"] == "too short" and f"too short.</strong> {summary['diagnosis']}</p>" in text
    for what, value in (("steps", "2, 1 an episode"), ("devices", "8 x cpu"), ("seed", "0"), ("algorithm", "grpo")):
        assert f"<dt>{what}</dt><dd>{value}</dd>" in text
    assert re.search(r"<dt>versions</dt><dd>ttrl_jax \S+, jax \S+, flax \S+, Python 3\.", text)
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    charts = charts_in(text)
    shown = {chart["note"]: chart for chart in charts.values()}
    for name in (name for name in rows[0] if name in metrics.GROUPS["Update"] or name in metrics.GROUPS["Votes"]):
        [line] = shown[name]["lines"]
        assert line["x"] == [0, 1] and line["y"] == pytest.approx([row[name] for row in rows[:2]], rel=1e-4), name
    assert {"vote_accuracy_reward", "vote_format_rate", "update_learning_rate", "update_loss"} <= charts.keys()
    found = data_in(text, "questions")
    assert {(question["set"], len(question["visits"])) for question in found} == {("training", 2), ("data", 2)}
    visits = [visit for question in found for visit in question["visits"]]
    assert {visit["step"] for visit in visits} == {0, 1, 2}
    assert all(len(visit["samples"]) == visit["votes"] for visit in visits)


def test_a_question_of_a_real_run(trained, write):
    _, text, _ = write(trained)
    found = data_in(text, "questions")
    lines = map(json.loads, (trained / "rollouts" / "train_000001.jsonl").read_text().splitlines())
    [written] = [each for each in lines if each["id"] == "2"]
    [shown] = [question for question in found if question["set"] == "training" and question["id"] == "2"]
    assert shown["question"] == written["question"] and shown["truth"] == written["truth"]
    assert shown["question"] in shown["prompt"] != shown["question"]  # the model's own template is around it
    visit, sample = shown["visits"][1], written["samples"][3]
    assert visit["label"] == written["label"] and visit["share"] == max(written["counts"]) / 8
    assert visit["samples"][3][:4] == [sample[name] for name in ("response", "answer", "class", "reward")]
    assert sum(count for _, _, count, _ in visit["ballot"]) + visit["no_answer"] == 8
    formed, spans = visit["samples"][3][7:]
    assert formed is False and visit["unformed"] == 8 == shown["unformed"]  # nothing is <think>...</think>
    assert len(spans) == sample["tokens"] and "".join(piece for piece, _ in spans).startswith(sample["response"])
    assert sum(logp for _, logp in spans) / len(spans) == pytest.approx(sample["mean_logp"], abs=1e-3)
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    training = [question["visits"][1]["right"] for question in found if question["set"] == "training"]
    assert sum(training) / 4 == rows[1]["audit/label_accuracy"]
    votes = [json.loads(line) for line in (trained / "votes.jsonl").read_text().splitlines()]
    told = [[vote["step"], vote["label"], vote["share"]] for vote in votes if vote["question"] == 2]
    assert [each[:3] for each in shown["history"]] == told and len(told) == 2


def test_every_chart_can_be_drawn_and_written(trained, tmp_path, fresh_flags, capfd, monkeypatch):
    """What the page's script hands to plotly has the form of its figures; --images writes the same charts."""
    code, err = call(monkeypatch, fresh_flags, capfd, trained, f"--images={tmp_path / 'images'}")
    assert (code, err) == (0, "")
    charts = charts_in((trained / "report.html").read_text())  # where it goes without --out
    (trained / "report.html").unlink()
    for name, chart in charts.items():
        lines = chart.get("lines") or [{"x": chart["groups"], "y": values} for _, values in chart["series"]]
        figure = graph_objects.Figure([graph_objects.Scatter(x=line["x"], y=line["y"]) for line in lines])
        assert len(figure.data) >= 1 and all(len(line["x"]) == len(line["y"]) for line in lines)
        image = ElementTree.parse(tmp_path / "images" / f"{name}.svg")
        texts = [each.text for each in image.iter("{http://www.w3.org/2000/svg}text")]
        assert {chart["title"], chart["y"]} <= set(texts), name
    assert {path.stem for path in (tmp_path / "images").iterdir()} == charts.keys()


def test_nothing_is_loaded(trained, write):
    _, text, _ = write(trained)
    packed = re.search(r'<script type="text/plain" id="plotly">([A-Za-z0-9+/=]+)</script>', text)
    ours = text.replace(packed[1], "").replace("http://www.w3.org/1998/Math/MathML", "")  # the name of a namespace
    assert not re.search(r"https?://|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")|\bsrc=|fetch\(", ours)
    assert 1e6 < len(packed[1]) < 2.5e6


def test_the_verdict_of_each_run_comes_before_its_results(tmp_path, write):
    evil = made_run(tmp_path / "a<b>&", {0: numbers(0.2, 0.3), 3: numbers(0.2, 0.3)})
    rising = made_run(tmp_path / "rising", {0: numbers(0.2, 0.3), 48: numbers(0.9, 0.3)}, label="random")
    _, text, _ = write(evil, rising)
    head = text[: text.index("<h2>Before and after</h2>")]
    assert "<strong>a&lt;b&gt;&amp;: too short.</strong> Training steps so far: 3;" in head
    assert "<strong>rising: learning.</strong> The majority ratio rose from 0.150 to 4.550" in head


def test_an_unfinished_run_has_no_after(tmp_path, write):
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)}, questions=64)
    rows = [{"step": step, "vote/majority_ratio": 0.1 + step / 100} for step in range(20)]
    rows[0] |= {f"eval/data/{name}": x for name, x in numbers(0.2, 0.3).items()}
    write_jsonl(run / "metrics.jsonl", rows)
    _, text, err = write(run)
    assert "The run is not finished: 20 of 288 steps are done." in text and err == ""
    assert "avg@4 on the 64 questions trained on: 0.200 at the start, not evaluated yet after training." in text
    assert "In training the majority ratio went from 0.135 to 0.255 (means of the first and the last 8 steps)." in text
    assert "<td>avg@4</td><td>0.200</td><td>not evaluated yet</td><td>-</td>" in text and "+0.000" not in text
    assert "<h2>Checkpoints</h2>" not in text
    [avg] = [line for line in charts_in(text)["accuracy_data"]["lines"] if line["name"] == "avg@4, evaluated"]
    assert (avg["x"], avg["y"]) == ([0], [0.2])


def test_several_runs_share_the_charts_and_bounds_are_drawn(tmp_path, write):
    method = made_run(tmp_path / "method", {0: numbers(0.2, 0.3), 4: numbers(0.6, 0.8)})
    oracle = made_run(tmp_path / "oracle", {0: numbers(0.2, 0.3), 4: numbers(0.75, 0.8)}, label="truth")
    code, text, _ = write(method, oracle)
    assert code == 0
    chart = charts_in(text)["accuracy_data"]
    assert chart["share"] and [(line["style"], line["color"], line["name"]) for line in chart["lines"]] == [
        ("dots", 0, "method: avg@4, evaluated"),
        ("dots", 0, "method: maj@4, evaluated"),
        ("means", 0, "method: correct votes in training, every step"),
        ("dots", 1, "oracle (oracle: true labels): avg@4, evaluated"),
        ("dots", 1, "oracle (oracle: true labels): maj@4, evaluated"),
        ("means", 1, "oracle (oracle: true labels): correct votes in training, every step"),
        ("bound", 0, "maj@4 of the start model (method)"),  # once: it is the same for both
        ("bound", 1, "avg@4 at the end of oracle (oracle: true labels)"),
    ]
    heights = {line["name"]: line["y"] for line in chart["lines"]}
    assert heights["maj@4 of the start model (method)"] == [0.3, 0.3]
    assert heights["avg@4 at the end of oracle (oracle: true labels)"] == [0.75, 0.75]
    settings = text[text.index("<h2>Settings</h2>") :]
    assert "<tr><td>reward.label</td><td>majority</td><td>truth</td></tr>" in settings.split("<details>")[0]


def test_seeds_of_one_config_are_put_together(tmp_path, write):
    ends = [(0.2, 0.6), (0.3, 0.8), (0.1, 0.7)]
    seeds = [
        made_run(tmp_path / f"run-seed{i}", {0: numbers(first, 0.3), 4: numbers(last, 0.8)}, seed=i)
        for i, (first, last) in enumerate(ends)
    ]
    other = made_run(tmp_path / "random", {0: numbers(0.2, 0.3), 4: numbers(0.1, 0.3)}, label="random")
    further = made_run(tmp_path / "further", {0: numbers(0.2, 0.3), 6: numbers(0.1, 0.3)}, seed=3)
    _, text, _ = write(*seeds, other, further)
    assert "<th>run-seed* (3 seeds): before</th>" in text and "<th>random (control: random labels): before</th>" in text
    assert "<th>further: before</th>" in text  # it has come further than the others: no mean with them
    shown = "<td>avg@4</td><td>0.200 (0.100 to 0.300)</td><td>0.700 (0.600 to 0.800)</td><td>+0.500</td>"
    assert shown + "<td>0.200</td><td>0.100</td><td>-0.100</td>" in text
    assert len({run.name for run in data.read_runs([str(seed) for seed in seeds])}) == 3
    lines = charts_in(text)["vote_majority_ratio"]["lines"]
    titles = ["run-seed* (3 seeds)", "random (control: random labels)", "further"]
    assert [(line["color"], line["name"]) for line in lines] == list(enumerate(titles))
    bars = dict(charts_in(text)["pass_data"]["series"])
    assert bars["run-seed* (3 seeds): start"] == [0.4] and bars["run-seed* (3 seeds): so far"] == [0.9]


def test_last_chosen_and_best_are_apart(tmp_path, write):
    shown = {
        0: numbers(0.2, 0.3),
        2: numbers(0.7, 0.5),
        4: numbers(0.5, 0.9),
        6: numbers(0.4, 0.9),
        8: numbers(0.3, 0.6),
    }
    run = made_run(tmp_path / "run", shown, questions=16)  # two steps an episode
    visits = {"runner_up": 0.0, "no_answer": 0, "counts": [4], "flipped": False}
    shares = (0.3, 0.3, 0.5, 0.5, 0.9, 0.9, 0.6, 0.6)
    votes = [{"step": step, "question": step % 2, "label": str(step % 2), "share": x} for step, x in enumerate(shares)]
    write_jsonl(run / "votes.jsonl", [row | visits for row in votes])
    assert data.choices(data.read_run(run, "run")) == {"start": 0, "last": 8, "chosen": 4, "best": 2}
    _, text, _ = write(run)
    for title, step, avg in (("last", 8, 0.3), ("chosen", 4, 0.5), ("best", 2, 0.7)):
        assert f"<td>{title}</td><td>{step}</td><td>{avg:.3f}</td>" in text
    blind = made_run(tmp_path / "blind", {0: {"majority_ratio": 0.4}, 3: {"majority_ratio": 0.3}})
    assert data.choices(data.read_run(blind, "blind")) == {"start": 0, "last": 3}


def test_models_side_by_side(tmp_path, write):
    """Evaluations in RUN/eval and evaluations by themselves stand beside the ends of runs."""
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3), 4: numbers(0.6, 0.8)}, finished=True)
    found = {"avg@4": 0.5, "maj@2": 0.55, "pass@2": 0.6, "no_answer_rate": 0.25, "strict_valid_rate": 0.5,
             "flexible_valid_rate": 1.0, "strict_avg@4": 0.4, "flexible_avg@4": 0.7, "greedy": None}  # fmt: skip
    write_json(run / "eval" / "quickstart-step4-seed0" / "results.json", {"results": {"data": found}})
    write_json(run / "eval" / "broken" / "results.json", {"results": 3})
    merged = tmp_path / "merged"
    write_json(merged / "results.json", {"results": {"data": found | {"avg@4": 0.9, "greedy": 0.8}}})
    _, text, err = write(run, merged)
    assert "run: " in err and "broken/results.json is damaged" in err
    charts = charts_in(text)
    accuracy = dict(charts["models_data"]["series"])
    names = charts["models_data"]["groups"]
    assert list(accuracy) == ["run: start", "run: end", "run: quickstart-step4-seed0", "merged"]
    assert names == ["avg@k", "maj@k", "greedy", "pass@k"]
    assert accuracy["run: quickstart-step4-seed0"] == [0.5, 0.55, None, 0.6] and accuracy["merged"][2] == 0.8
    assert dict(charts["valid_data"]["series"])["merged"] == [0.5, 1, 0.75]  # strict, flexible, as trained
    assert dict(charts["read_data"]["series"])["merged"] == [0.4, 0.7, 0.9]
    assert charts["maj_data"]["groups"] == ["2", "4"] and dict(charts["maj_data"]["series"])["run: end"] == [0.6, 0.7]
    _, alone, _ = write(merged)
    assert "<td>trained on</td><td>avg@4</td><td>0.900</td>" in alone and 'href="#training"' not in alone
    assert charts_in(alone).keys() == {"models_data", "valid_data", "read_data", "pass_data", "maj_data"}


def test_hostile_texts_are_only_data(tmp_path, write):
    run = made_run(tmp_path / "a<b>&", {0: numbers(0.2, 0.3)})
    evil = row("x", HOSTILE, right=None, response=f"{HOSTILE} $\\href{{javascript:alert(3)}}{{x}}$")
    evil |= {"id": HOSTILE, "question": HOSTILE, "truth": HOSTILE}
    write_jsonl(run / "rollouts" / "train_000000.jsonl", [evil])
    code, text, _ = write(run)
    assert code == 0
    assert "alert(1)" in text and "<script>alert" not in text and "<img" not in text and "<!--" not in text
    assert len(re.findall(r"<script\b", text)) == len(re.findall(r"</script>", text)) == 6
    [question] = data_in(text, "questions")
    assert question["question"] == question["id"] == question["truth"] == HOSTILE
    assert question["visits"][0]["samples"][0][1] == HOSTILE
    assert "a&lt;b&gt;&amp;" in text and "<b>" not in text
    assert "javascript" not in json.dumps(list(data_in(text, "formulas")[1].values()))
    for name in ("charts.js", "questions.js"):
        script = (ROOT / "ttrl_jax" / "report" / name).read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_the_page_stays_under_8_mb_and_says_what_it_leaves_out(tmp_path, write):
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)})
    long = [row(f"{i}", "9", right=0, count=32, response="<" * 9_000) for i in range(40)]
    for step in range(0, 40, 10):
        write_jsonl(run / "rollouts" / f"train_{step:06}.jsonl", long)
    write_jsonl(run / "rollouts" / "eval_data_000000.jsonl", [row(f"{i}", "9", right=0) for i in range(5_000)])
    steps = [{f"audit/{name}": 1 / 3 + step for name in range(30)} | {"step": step} for step in range(4_000)]
    write_jsonl(run / "metrics.jsonl", steps)
    code, text, _ = write(run)
    assert code == 0 and 5e6 < len(text.encode()) < 8e6
    assert "questions are shown, evenly spaced" in text and "generations are shown, evenly spaced" in text
    assert "5080 of 5160 ballots are shown" in text
    visits = [visit for question in data_in(text, "questions") for visit in question["visits"]]
    said = re.search(r"(\d+) of (\d+) generations are shown", text)
    assert int(said[1]) == sum(len(visit["samples"]) for visit in visits)
    assert int(said[2]) == sum(visit["votes"] for visit in visits)


def test_evenly_keeps_all_that_fits_and_spaces_the_rest():
    assert fit.evenly([9] * 10, 100) == list(range(10))
    assert fit.evenly([9] * 10, 50) == [1, 3, 5, 7, 9]
    kept = fit.evenly([9] * 1000, 1000)
    assert 95 <= len(kept) <= 100 and {b - a for a, b in zip(kept, kept[1:], strict=False)} <= {10, 11}
    assert fit.evenly([10_000], 100) == []


def test_a_run_that_is_half_there(tmp_path, write):
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3), 4: numbers(0.6, 0.8)})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('[1, 2]\n{"step": 5, "vote/majority_ratio": NaN}\n{"step": 6, "vote/maj')
    (run / "rollouts").mkdir()
    (run / "rollouts" / "train_000000.jsonl").write_text(json.dumps(row("a", "9", right=0)) + '\n{"id": "b"}\n{"id')
    (run / "rollouts" / "notes.jsonl").write_text("mine\n")
    (run / "votes.jsonl").write_text("{\n")
    (run / "summary.json").write_text("{")
    code, text, err = write(run)
    assert code == 0
    assert "2 of the lines of metrics.jsonl" in text and "summary.json is damaged" in text
    assert "2 of the rows of rollouts/train_000000.jsonl" in text and "not finished" in text
    assert "1 of the lines of votes.jsonl" in text
    assert "summary.json is damaged" in err
    assert [question["id"] for question in data_in(text, "questions")] == ["a"]
    assert "<td>avg@4</td><td>0.200</td><td>0.600</td>" in text
    (run / "config.json").write_text("{")
    (run / "metrics.jsonl").unlink()
    code, text, _ = write(run)
    assert code == 0 and "config.json is damaged" in text and "no curves" in text and charts_in(text) == {}


def test_a_summary_stands_in_for_lost_metrics(tmp_path, write):
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)})
    (run / "metrics.jsonl").unlink()
    summary = {"before": {"avg@4": 0.1}, "after": {"avg@4": 0.5}, "x_y_before": {"avg@4": 0.2}, "steps": 7}
    write_json(run / "summary.json", summary)
    assert data.read_run(run, "run").evaluations == {
        0: {"data": {"avg@4": 0.1}, "x_y": {"avg@4": 0.2}},
        7: {"data": {"avg@4": 0.5}},
    }
    _, text, _ = write(run)
    assert "<td>trained on</td><td>avg@4</td><td>0.100</td><td>0.500</td><td>+0.400</td>" in text


def test_what_cannot_be_reported_is_one_sentence(tmp_path, write, fresh_flags, capfd, monkeypatch):
    run = made_run(tmp_path / "run", {0: numbers(0.2, 0.3)})
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("")
    write_json(tmp_path / "bad" / "results.json", [])
    refused = [
        (write(), "RUN is missing"),
        (write(tmp_path), "is not a run folder"),
        (write(run, tmp_path / "nothing"), "is not a run folder"),
        (write(run, run), "given twice"),
        (write(run, tmp_path / "bad"), "is damaged"),
        (write(run, out="report.txt"), ".html"),
        (write(run, out="folder.html"), "is a folder"),
        (write(run, out="file/report.html"), "cannot be written"),
        (write(run, f"--images={tmp_path / 'file' / 'x'}"), "--images"),
    ]
    for (code, text, err), words in refused:
        assert code == 2 and text is None and words in err and err.count("\n") == 1, err
    for given, words in ((run, run), "--out FILE.html"), ((tmp_path,), "is not a run folder"):
        code, err = call(monkeypatch, fresh_flags, capfd, *given)
        assert code == 2 and words in err and err.count("\n") == 1, err


def test_runs_of_one_name_are_told_apart_by_path(tmp_path):
    paths = [str(made_run(tmp_path / name / "run", {0: numbers(0.2, 0.3)})) for name in "ab"]
    assert [run.name for run in data.read_runs(paths)] == paths


def test_a_made_generation_has_the_keys_of_a_real_one(trained):
    """The rows that the other tests make are such as a run writes."""
    written = json.loads((trained / "rollouts" / "train_000000.jsonl").read_text().splitlines()[0])
    assert row("a", "9", right=0).keys() < written.keys()
    assert generation("", None, None, 0.0).keys() < written["samples"][0].keys()

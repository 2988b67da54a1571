"""Semantics and invariance: the verbs from Python are what the commands are made of, as docs/library.md has them."""

import contextlib
import copy
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_model import all_logits

from configs import quickstart, quickstart_sums
from ttrl_jax import cli, commands, train
from ttrl_jax import library as ttrl
from ttrl_jax.errors import InputError
from ttrl_jax.measure import evaluation
from ttrl_jax.measure.step import Seen
from ttrl_jax.model.weights import sha256
from ttrl_jax.reward.judge import RULES
from ttrl_jax.reward.symbolic import Undecided
from ttrl_jax.run.files import Files

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), flags=re.DOTALL)
LOOP, OWN, REWARDS_OF_ONES_OWN, MEASURE, GO_ON, LOGPS, REWARDS, TASK = BLOCKS
SMALL = {
    "episodes": 5, "data.limit": 8, "rollout.votes": 8, "train.samples": 4, "train.micro_tokens": 384,
    "eval.samples": 1, "eval.tasks": (), "log.tensorboard": False,
}  # fmt: skip


QUICKSTART_SUMS = quickstart_sums.get_config()  # made once, as one test puts another config in the quickstart's place


def small_config(**changes):
    config = copy.deepcopy(QUICKSTART_SUMS)
    config.update_from_flattened_dict(SMALL | changes)
    return config


@pytest.fixture(scope="module")
def opened():
    session = ttrl.open_session(ttrl.read_inputs(small_config()))
    yield session
    ttrl.close(session)


def test_the_whole_method_is_twenty_lines_and_what_train_does(tmp_path, monkeypatch, fresh_flags, capfd):
    """Bit for bit, after five steps."""
    assert len([line for line in LOOP.splitlines() if line.strip()]) <= 20
    monkeypatch.chdir(tmp_path)
    arguments = [f"--config.{name}={value}" for name, value in SMALL.items()]
    monkeypatch.setattr(sys, "argv", ["train", f"--config={ROOT / 'configs' / 'quickstart_sums.py'}", *arguments])
    assert cli.run(train.main, commands.TRAIN, doc="") == 0
    run = tmp_path / "runs" / "quickstart_sums"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 5

    monkeypatch.setattr(quickstart, "get_config", small_config)
    names = {"np": np, "dataclasses": dataclasses}
    exec(compile(LOOP, "docs/library.md", "exec"), names)
    assert sha256(names["session"].state.policy.params) == summary["params_sha256"]
    votes = [json.loads(line) for line in (run / "votes.jsonl").read_text().splitlines()]
    assert votes == json.loads(json.dumps(names["history"].rows())) and len(votes) == 5 * 8
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[4]["update/loss"] == names["metrics"]["loss"]

    session, history, names["config"] = names["session"], names["history"], small_config()
    exec(compile(REWARDS_OF_ONES_OWN, "docs/library.md", "exec"), names)
    short = [[len(text) < 40 for text in group] for group in names["rollouts"].texts]
    np.testing.assert_array_equal(names["verdict"].rewards, np.float32(short))
    with ttrl.Checkpoints("runs/my_loop", keep=1) as checkpoints:
        assert not ttrl.save(session, checkpoints)
    exec(compile(GO_ON, "docs/library.md", "exec"), names)
    again = names["session"]
    assert again.step == int(again.state.step) == 5 and names["history"] == history
    assert sha256(again.state.policy.params) == summary["params_sha256"]
    capfd.readouterr()
    exec(compile(MEASURE, "docs/library.md", "exec"), names)
    assert capfd.readouterr().out.startswith("data {'majority_ratio': ")
    assert OWN.splitlines()[0] == "from configs import default" and "read_inputs(config)" in OWN


def test_log_probs_of_given_responses(opened):
    """Slow twin: full logits of prompt and response, at the temperature of training."""
    batch = opened.problems.take(0)
    names = {"ttrl": ttrl, "np": np, "session": opened, "batch": batch}
    exec(compile(LOGPS, "docs/library.md", "exec"), names)
    logps, rows = np.asarray(names["logps"]), names["rows"]
    assert logps.shape == rows.mask.shape and rows.mask.sum() == 8 * sum(
        len(opened.inputs.tokenizer(text)["input_ids"]) for text in ("37 + 48 = \\boxed{85}", "it is \\boxed{86}")
    )
    params = jax.tree.map(np.asarray, opened.state.policy.params)
    logits = all_logits(params, opened.inputs.model, rows.ids) / opened.sampling.temperature
    found = jax.nn.log_softmax(logits)
    at = np.minimum(rows.prompt_lengths[:, None] - 1 + np.arange(rows.mask.shape[1]), rows.ids.shape[1] - 1)
    want = np.take_along_axis(np.take_along_axis(found, at[..., None], 1), rows.responses[..., None], 2)[..., 0]
    np.testing.assert_allclose(logps, np.where(rows.mask > 0, want, 0), atol=2e-4)
    for texts in ([["5", ""]], [["5", "6"], ["7"]]):
        with pytest.raises(InputError, match="no empty one"):
            ttrl.respond(opened, texts)
    with pytest.raises(InputError, match="a response has 14 tokens, more than rollout.max_tokens=13"):
        ttrl.respond(opened, [["12345678901234"]])


def test_numbers_that_are_not_finite_name_the_step_and_the_question(opened):
    batch = opened.problems.take(0)[3:5]
    prompts, broken = ttrl.encode(opened, batch), jax.tree.map(lambda leaf: leaf * np.nan, opened.state)
    measures = dataclasses.replace(opened.inputs, trains=False, problems=None)
    for step, inputs, words in (
        (7, opened.inputs, "lower the learning rate"),
        (7, measures, "take an earlier checkpoint"),
        (0, opened.inputs, "what is wrong with the model, "),
    ):
        bad = dataclasses.replace(opened, state=broken, step=step, inputs=inputs)
        with pytest.raises(FloatingPointError, match=words) as caught:
            ttrl.sample(bad, prompts, jax.random.key(0), votes=2, sampling=ttrl.Sampling(0.6, 20, 0.95))
        where = f"question {batch[0].index} (counted from 0), after {step} training steps; "
        assert str(caught.value).startswith(f"the log-probs of sampled tokens are not finite, first those of {where}")
    rows = ttrl.train_batch(prompts, ttrl.respond(opened, [["5", "6"]] * 2), np.array([[0, 1], [0, 1]]))
    copy = dataclasses.replace(opened, state=jax.tree.map(lambda leaf: leaf.copy(), opened.state), step=7)
    with pytest.raises(FloatingPointError, match="grad_norm is not finite in any optimizer step of training step 7 "):
        ttrl.update(copy, rows, {"advantages": np.full(rows.mask.shape, np.nan, np.float32)})


@pytest.mark.slow
def test_entropies_of_votes_for_a_judge_that_asks(opened, monkeypatch):
    """Slow twin: full logits of what was drawn, at the temperature of training; without asking there are none."""
    batch = opened.problems.take(2)
    prompts = ttrl.encode(opened, batch)
    drawn = ttrl.sample(opened, prompts, jax.random.key(1), votes=3, sampling=opened.sampling)
    assert ttrl.evidence_of(opened, prompts, drawn, ttrl.Judge()).entropies is None
    monkeypatch.setitem(RULES, "asks", dataclasses.replace(RULES["majority"], asks_entropies=True))
    found = ttrl.evidence_of(opened, prompts, drawn, ttrl.Judge(rule="asks"))
    params = jax.tree.map(np.asarray, opened.state.policy.params)
    for p, v in ((0, 0), (3, 2), (7, 1)):
        prompt, length = prompts.ids[p, : prompts.lengths[p]], drawn.lengths[p, v]
        row = np.concatenate([prompt, drawn.tokens[p, v, :length]])[None]
        logps = jax.nn.log_softmax(all_logits(params, opened.inputs.model, row) / opened.sampling.temperature)
        entropies = -(np.exp(logps) * logps).sum(-1)[0, len(prompt) - 1 : -1]
        assert found.entropies[p, v] == pytest.approx(float(entropies.mean()), rel=1e-4)
        assert found.lengths[p, v] == length
        assert found.mean_logps[p, v] == pytest.approx(drawn.logps[p, v, :length].mean(), rel=1e-5)


def test_what_was_drawn_is_what_is_encoded_again(opened):
    batch = opened.problems.take(1)
    prompts = ttrl.encode(opened, batch)
    drawn = ttrl.sample(opened, prompts, jax.random.key(0), votes=3, sampling=opened.sampling)
    given = ttrl.respond(opened, drawn.texts)
    for text, row, length in zip(
        sum(map(list, drawn.texts), []), given.tokens.reshape(24, -1), given.lengths.ravel(), strict=True
    ):
        assert opened.inputs.tokenizer.decode(row[:length].tolist()) == text
    ended = ~drawn.truncated  # the token that ends a response has no text
    assert (given.lengths == drawn.lengths - ended).all()


def test_a_row_of_a_control_has_the_label_that_was_rewarded_and_the_majority(opened, tmp_path):
    batch = opened.problems.take(0)
    prompts = ttrl.encode(opened, batch)
    given = ttrl.respond(opened, [["\\boxed{5}", "\\boxed{5}", "\\boxed{6}", "\\boxed{\\,}"]] * len(batch))
    ballots, draw = ttrl.cast_votes(opened.task, given.texts), ttrl.Draw(0, 0, [problem.index for problem in batch])
    evidence = ttrl.evidence_of(opened, prompts, given, judge := ttrl.Judge(label="random"))
    verdict, chosen = judge(ballots, evidence, ttrl.History(), draw), np.tile(np.arange(4), (len(batch), 1))
    with contextlib.closing(Files(tmp_path, start_step=0, tensorboard=False, wandb_project=None)) as files:
        train.write(opened, files, 0, Seen(batch, prompts, given, ballots, evidence, verdict, chosen, ()), {})
    rows = list(map(json.loads, (tmp_path / "rollouts" / "train_000000.jsonl").read_text().splitlines()))
    assert {row["label"] for row in rows} == {"5", "6"} and {row["majority"] for row in rows} == {"5"}
    for row in rows:
        assert [sample["reward"] for sample in row["samples"]] == [
            sample["answer"] == row["label"] for sample in row["samples"]
        ]


def test_pairs_that_were_not_decided_are_written_down(opened, tmp_path):
    batch = opened.problems.take(0)
    prompts, given = ttrl.encode(opened, batch), ttrl.respond(opened, [["\\boxed{5}", "\\boxed{6}"]] * len(batch))
    pairs = (Undecided("5", "6", "undecided"), Undecided("\ud800", "7", "lost"))
    ballots = ttrl.cast_votes(opened.task, given.texts)
    ballots[1:2] = [dataclasses.replace(ballots[1], undecided=3, pairs=pairs)]
    draw = ttrl.Draw(0, 4, [problem.index for problem in batch])
    evidence = ttrl.evidence_of(opened, prompts, given, judge := ttrl.Judge())
    verdict = judge(ballots, evidence, ttrl.History(), draw)
    seen = Seen(batch, prompts, given, ballots, evidence, verdict, np.tile(np.arange(2), (len(batch), 1)), ())
    with contextlib.closing(Files(tmp_path, start_step=0, tensorboard=False, wandb_project=None)) as files:
        train.write(opened, files, 4, seen, {})
    rows = list(map(json.loads, (tmp_path / "undecided.jsonl").read_text().splitlines()))
    asked = {"step": 4, "question": batch[1].index}
    assert rows == [
        asked | {"first": "5", "second": "6", "why": "undecided"},
        asked | {"first": "\ud800", "second": "7", "why": "lost"},
    ]


def test_the_pairs_of_an_evaluation(opened, monkeypatch):
    """Counted and kept, of whatever set."""
    pair, questions = Undecided("5", "6", "lost"), opened.inputs.sets[0]
    real = evaluation.cast_votes
    undecided = [dataclasses.replace(b, undecided=2, pairs=(pair,)) for b in real(questions.task, [["x"]])]
    monkeypatch.setattr(evaluation, "cast_votes", lambda *given, **more: undecided + real(*given, **more)[1:])
    found = ttrl.measure(opened, questions, ttrl.task_keys(opened)[0], progress=lambda *done: None)
    assert found.undecided == [{"question": questions.items[0].index, "first": "5", "second": "6", "why": "lost"}]
    assert found.numbers["undecided"] == 2 / len(questions.items)


def test_an_evaluation_makes_rows_where_they_are_kept_alone(opened, monkeypatch):
    made, questions = [], opened.inputs.sets[0]
    monkeypatch.setattr(evaluation, "generations", lambda *given, **more: made.append(1) or [{"samples": [0]}])
    found = ttrl.measure(opened, questions, ttrl.task_keys(opened)[0], progress=lambda *done: None)
    assert "avg@1" in found.numbers and not made
    assert found.rows() == [{"samples": [0]}] and made == [1]


def test_rewards_of_texts():
    """None never wins, and earns nothing."""
    [expression, want] = REWARDS.strip().split("  # ")
    assert eval(expression, {"ttrl": ttrl}) == json.loads(want)
    task = ttrl.by_strategies(strategies=("tag:a", "last_number"))
    assert ttrl.majority_voting_reward(task, ["none", "nor here", "<a>3</a>", "nothing"]) == [0, 0, 1, 0]
    assert ttrl.majority_voting_reward(task, ["none", "nor here"]) == [0, 0]


@pytest.mark.slow
def test_two_sessions_and_no_mesh_left(opened):
    """Semantics: another model size is open beside, and each goes on as if it were alone."""
    empty = jax.sharding.get_abstract_mesh()
    assert empty.empty
    other = ttrl.open_session(ttrl.read_inputs(small_config(**{"seed": 1, "mesh.fsdp": 4, "mesh.data": 2})))
    prompts = ttrl.encode(opened, opened.problems.take(0))
    key = ttrl.step_key(opened, 0)
    one, two, three = (
        ttrl.sample(session, prompts, key, votes=2, sampling=opened.sampling).tokens
        for session in (opened, other, opened)
    )
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)
    ttrl.close(other)
    assert jax.sharding.get_abstract_mesh().empty
    with pytest.raises(RuntimeError):
        ttrl.sample(other, prompts, key, votes=2, sampling=opened.sampling)


def test_a_session_that_samples_alone(tmp_path):
    """Semantics: it draws what one for training draws, and says what it cannot."""
    session = ttrl.open_session(ttrl.read_inputs(small_config(**{"rollout.prompts": 80}), training=False))
    assert session.state.policy.optimizer is None and session.inputs.total_steps == 0
    prompts = ttrl.encode(session, session.inputs.sets[0].items)
    drawn = ttrl.sample(session, prompts, jax.random.key(0), votes=2, sampling=ttrl.Sampling(temperature=0.0))
    assert drawn.tokens.shape[:2] == (8, 2) and (drawn.tokens[:, 0] == drawn.tokens[:, 1]).all()
    rows = ttrl.train_batch(prompts, drawn, np.zeros((8, 1), np.int32))
    for verb in (ttrl.score, ttrl.entropies, lambda *given: ttrl.update(*given, {"advantages": rows.mask})):
        with pytest.raises(ValueError, match="samples alone"):
            verb(session, rows)


def test_importing_defines_no_flags_and_touches_no_device():
    code = """
import importlib, pkgutil, sys
import ttrl_jax
names = [m.name for m in pkgutil.walk_packages(ttrl_jax.__path__, "ttrl_jax.") if "_worker" not in m.name]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
from absl import flags
own = [name for name, found in flags.FLAGS.flags_by_module_dict().items() if name.startswith("ttrl_jax")]
assert not own and "config" not in flags.FLAGS and len(names) > 60, own
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


TOTALS = """
import json, re

from ttrl_jax import library as ttrl


def messages(question):
    return [{"role": "user", "content": question}]


def extract(response):
    terms = re.findall(r"\\d+", response)
    found = {"total": int(terms[-1]) % 10, "terms": len(terms)} if terms else None
    return None if found is None else ttrl.Answer(json.dumps(found, sort_keys=True))


def same(one, other):  # the terms do not count
    return json.loads(one.text)["total"] == json.loads(other.text)["total"]


def get_task():
    return ttrl.Task("last digits", messages, extract, classes=ttrl.classes_by(same), same=same)
"""


def call_with_task(file, monkeypatch, *arguments):
    arguments = [f"--config.{name}={value}" for name, value in SMALL.items()] + list(arguments)
    command = ["train", f"--config={ROOT / 'configs' / 'quickstart_sums.py'}", f"--config.task={file}", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    return cli.run(train.main, commands.TRAIN, doc="")


def test_a_task_of_ones_own(tmp_path, monkeypatch, fresh_flags):
    """Semantics: votes, labels, flips and accuracies go by the file's equality, worked out again from the responses."""
    monkeypatch.chdir(tmp_path)
    Path("task.py").write_text(TOTALS)
    rows = [
        {"prompt": f"Tom has {n} apples and buys 48 more. How many apples does Tom have now?"} for n in range(20, 28)
    ]
    truths = [json.dumps({"total": (n + 48) % 10, "terms": 0}) for n in range(20, 28)]
    rows = [row | {"answer": truth} for row, truth in zip(rows, truths, strict=True)]
    Path("data.json").write_text(json.dumps(rows))
    more = ["--config.data.path=data.json", "--config.log.generations_every=1", "--config.episodes=3"]
    assert call_with_task("task.py", monkeypatch, *more) == 0
    votes = [json.loads(line) for line in Path("runs/quickstart_sums/votes.jsonl").read_text().splitlines()]
    found, last, right, several = [], {}, 0, 0
    for step in range(3):
        for line in Path(f"runs/quickstart_sums/rollouts/train_{step:06}.jsonl").read_text().splitlines():
            row = json.loads(line)
            digits = [json.loads(sample["answer"])["total"] for sample in row["samples"]]
            several += len({sample["answer"] for sample in row["samples"]}) > len(set(digits))
            first = list(dict.fromkeys(digits))
            label = max(first, key=lambda digit: (digits.count(digit), -first.index(digit)))
            assert json.loads(row["label"])["total"] == label
            assert [sample["reward"] for sample in row["samples"]] == [float(digit == label) for digit in digits]
            assert row["counts"] == [digits.count(digit) for digit in first]
            flipped = last[row["id"]] != label if row["id"] in last else None
            last[row["id"]] = label
            found.append((step, flipped, label))
            right += label == json.loads(row["truth"])["total"]
    assert [(v["step"], v["flipped"], json.loads(v["label"])["total"]) for v in votes] == found
    metrics = [json.loads(line) for line in Path("runs/quickstart_sums/metrics.jsonl").read_text().splitlines()][:3]
    assert sum(row["audit/label_accuracy"] for row in metrics) * 8 == pytest.approx(right)
    assert several and right and any(flipped for _, flipped, _ in found)


def test_the_task_of_the_page(tmp_path):
    names = {}
    exec(compile(TASK, "docs/library.md", "exec"), names)
    task = names["get_task"]()
    texts = ['{"total": 5}', 'so {"total": 5.0, "of": "apples"}', "five", '{"total": null}', '{"total": "6"}', "}{"]
    texts += ['{"total": ' + "9" * 400 + "}", "{" + "[" * 100_000 + "}"]
    assert ttrl.majority_voting_reward(task, texts) == [1, 1, 0, 0, 0, 0, 0, 0]
    assert task.messages("How many?")[0]["content"].startswith("How many?\nAnswer with")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("there is no file", "task")),
        ("def get_task(:\n", ("task.py", "line 1")),
        ("import nothing_like_it\n", ("task.py", "nothing_like_it")),
        ("x = 1\n", ("get_task()",)),
        ("def get_task():\n    return 3\n", ("ttrl_jax.tasks.task.Task", "int")),
    ],
)
def test_task_files_that_cannot_be_used(tmp_path, monkeypatch, capfd, fresh_flags, text, words):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("task.py").write_text(text)
    assert call_with_task("task.py", monkeypatch) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and all(word in said for word in words), said
    assert not Path("runs").exists()

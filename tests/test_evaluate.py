"""Pulse: the command on a run, on its checkpoints and on a model, against what training wrote. Semantics: bad input."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ttrl_jax import cli, commands, evaluate

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "configs" / "quickstart_model"
QUESTIONS = [{"prompt": f"Tom has {a} apples and buys {b} more. How many apples does Tom have now?", "answer": a + b}
             for a, b in ((12, 30), (41, 7), (25, 50))]  # fmt: skip
SAMPLES, LABEL_FREE = 4, {"majority_ratio", "truncation_rate", "no_answer_rate", "undecided", "response_length"}
MEASURED = LABEL_FREE | {"avg@4", "std@4", "worst@4", "greedy"}
MEASURED |= {f"{name}@{j}" for name in ("pass", "maj", "best_of") for j in (2, 3, 4)}
TASKS = ("data", "held_out", "aime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where everything below is written. The many processes run the same programs: compile them once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("programs")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        folder = tmp_path_factory.mktemp("evaluate")
        (folder / "questions.json").write_text(json.dumps(QUESTIONS))
        yield folder


def arguments(folder: Path) -> list[str]:
    """The settings of evaluation, the same for training and for the command."""
    return [
        f"--config={ROOT / 'configs' / 'quickstart_sums.py'}", "--config.data.limit=4",
        f"--config.eval.samples={SAMPLES}", "--config.eval.k=3", "--config.eval.greedy=true",
        f"--config.eval.tasks=('held_out=builtin:sums.held_out', 'aime={folder / 'questions.json'}')",
    ]  # fmt: skip


def call(command: str, folder: Path, *given: str) -> str:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", f"ttrl_jax.{command}", *given],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run of two episodes of one step, with checkpoints after both, that was evaluated before, between and after."""
    call(
        "train", folder, *arguments(folder), "--workdir=run", "--config.episodes=2", "--config.eval.every=1",
        "--config.rollout.prompts=4", "--config.rollout.votes=8", "--config.train.samples=8",
        "--config.train.micro_tokens=384", "--config.train.minibatch_prompts=2", "--config.train.learning_rate=4e-4",
    )  # fmt: skip
    return folder / "run"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def of_step(run: Path, step: int) -> dict[str, dict[str, float]]:
    """What training measured after so many steps, by task."""
    row = lines(run / "metrics.jsonl")[step]
    assert row["step"] == step
    found: dict[str, dict[str, float]] = {}
    for name, value in row.items():
        if name.startswith("eval/"):
            _, task, metric = name.split("/")
            found.setdefault(task, {})[metric] = value
    return found


def test_training_evaluates_every_task_each_time(run: Path):
    measured = [of_step(run, step) for step in range(3)]
    assert [{task: set(numbers) for task, numbers in each.items()} for each in measured] == [
        dict.fromkeys(TASKS, MEASURED)
    ] * 3
    assert measured[0] != measured[1] != measured[2], "nothing was learnt, so nothing can be told apart"
    summary = read(run / "summary.json")
    for task, prefix in zip(TASKS, ("", "held_out_", "aime_"), strict=True):
        assert (summary[f"{prefix}before"], summary[f"{prefix}after"]) == (measured[0][task], measured[2][task])
        for step in (0, 2):
            rows = lines(run / "rollouts" / f"eval_{task}_{step:06}.jsonl")
            assert len(rows) == (3 if task == "aime" else 4)
            assert all(len(row["samples"]) == SAMPLES and "answer" in row["greedy"] for row in rows)
    # The quickstart's errors are noise: it knows the sums.
    assert measured[0]["data"]["greedy"] == 1 > measured[0]["data"]["avg@4"]


def test_the_latest_checkpoint_gives_what_training_ended_with(run: Path, folder: Path):
    output = call("evaluate", folder, *arguments(folder), "--checkpoint=run")
    out = run / "eval" / "quickstart_sums-step2-seed0"
    files = ["config.json", "generations.jsonl", "results.json", "undecided.jsonl"]
    assert sorted(path.name for path in out.iterdir()) == files
    results, summary = read(out / "results.json"), read(run / "summary.json")
    assert results["results"] == of_step(run, 2)
    assert results["results"]["data"] == summary["after"]
    assert results["params_sha256"] == summary["params_sha256"]
    assert (results["checkpoint"], results["seed"], results["samples"]) == ({"run": str(run), "step": 2}, 0, SAMPLES)
    written = [{"task": t} | row for t in TASKS for row in lines(run / "rollouts" / f"eval_{t}_000002.jsonl")]
    assert lines(out / "generations.jsonl") == written
    for words in ("weights   " + str(run) + ", after step 2", "best_of@3", "greedy", f"{out}", "held_out", "aime"):
        assert words in output
    # The same once more writes the same.
    call("evaluate", folder, *arguments(folder), f"--checkpoint={run}")
    assert read(out / "results.json")["results"] == results["results"]


def test_one_checkpoint_gives_what_training_saw_then(run: Path, folder: Path):
    call("evaluate", folder, *arguments(folder), "--checkpoint=run/checkpoints/1", "--out=one")
    results = read(folder / "one" / "results.json")
    assert results["checkpoint"]["step"] == 1
    assert results["results"] == of_step(run, 1)


def test_a_model_folder_gives_what_training_began_with(run: Path, folder: Path):
    call("evaluate", folder, *arguments(folder), f"--checkpoint={MODEL}")
    results = read(folder / "evals" / "quickstart_sums-quickstart_model-seed0" / "results.json")
    assert results["checkpoint"] is None
    assert results["results"] == of_step(run, 0)


@pytest.mark.slow
def test_without_checkpoint_the_configs_model_and_another_seed_other_samples(run: Path, folder: Path):
    begin = lines(run / "rollouts" / "eval_data_000000.jsonl")
    seeds = {}
    for seed in (0, 1):
        # Without tasks and greedy: the samples of the config's own questions do not depend on those.
        given = [*arguments(folder)[:3], "--config.eval.tasks=()", f"--config.seed={seed}", f"--out=plain{seed}"]
        call("evaluate", folder, *given)
        seeds[seed] = lines(folder / f"plain{seed}" / "generations.jsonl")
        assert set(read(folder / f"plain{seed}" / "results.json")["results"]) == {"data"}
    assert [row["samples"] for row in seeds[0]] == [row["samples"] for row in begin]
    assert all(a["samples"] != b["samples"] for a, b in zip(seeds[0], seeds[1], strict=True))
    assert "greedy" not in seeds[0][0] and "greedy" in begin[0]


# ---- what a user can get wrong


@pytest.fixture
def refused(folder: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, fresh_flags):
    """Call the command in this process; it must say one line with some words, and write nothing."""
    monkeypatch.chdir(folder)

    def refused(given: list[str], *words: str) -> None:
        fresh_flags()
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        monkeypatch.setattr(sys, "argv", ["evaluate", *given])
        code = cli.run(evaluate.main, commands.EVALUATE, doc=evaluate.__doc__)
        stderr = capfd.readouterr().err
        assert code == 2, stderr
        assert stderr.startswith("error: ") and stderr.count("\n") == 1, f"not one line: {stderr}"
        for word in words:
            assert word in stderr, stderr
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    return refused


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--checkpoint=nowhere", ("--checkpoint", "nowhere", "does not exist")),
        ("--checkpoint=nowhere/checkpoints/3", ("nowhere is not a run folder",)),
        ("--checkpoint=.", ("config.json",)),
        ("--config.model.path=/nowhere", ("/nowhere",)),
        ("--config.eval.k=5", ("eval.k", "eval.samples=4", "5")),
        ("--config.eval.k=0", ("eval.k", "0")),
        ("--config.eval.k=1.5", ("eval.k", "1.5")),
        ("--config.eval.samples=0", ("eval.samples",)),
        ("--config.eval.tasks=nothing", ("'nothing'", "configs/nothing.py")),
        ("--config.data.path=/nowhere.json", ("/nowhere.json",)),
        ("--config.prompt.max_tokens=15", ("15", "id", "builtin:sums.train")),
        ("--config.mesh.tensor=3", ("mesh",)),
        ("--out=questions.json", ("questions.json is a file", "--out")),
        ("--out=.", ("not empty", "--out")),
        ("--step=last", ("--step=last", "add --checkpoint RUN")),
        ("--nonsense=1", ("nonsense",)),
    ],
)
def test_bad_values(refused, folder: Path, given: str, words: tuple[str, ...]):
    refused([*arguments(folder)[:3], given], *words)


def test_a_weight_that_is_not_finite_is_one_sentence(folder: Path, capfd, monkeypatch, fresh_flags):
    """With the settings of Qwen3's card: top-k leaves no token of such logits, and top-p has nothing to begin with."""
    broken = shutil.copytree(MODEL, folder / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, broken / "model.safetensors")
    monkeypatch.chdir(folder)
    given = [
        *arguments(folder)[:3],
        "--config.eval.top_k=20",
        "--config.eval.top_p=0.95",
        "--config.eval.temperature=0.6",
    ]
    monkeypatch.setattr(sys, "argv", ["evaluate", *given, "--checkpoint=broken", "--out=none"])
    assert cli.run(evaluate.main, commands.EVALUATE, doc=evaluate.__doc__) == 1
    assert capfd.readouterr().err == (
        "error: evaluating data: the log-probs of sampled tokens are not finite, first those of question 0 (counted "
        "from 0), after 0 training steps; look for what is wrong with the model, or set model.dtype=float32\n"
    )
    assert not (folder / "none").exists()


def test_no_config(refused):
    refused([], "--config")


def test_a_run_without_a_checkpoint(refused, folder: Path, run: Path):
    empty = folder / "empty"
    (empty / "checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "config.json", empty)
    refused([*arguments(folder), "--checkpoint=empty"], "no checkpoint yet")
    refused([*arguments(folder), "--checkpoint=run/checkpoints/9"], "checkpoints/9", "newest is 2")
    (empty / "config.json").write_text("{")
    refused([*arguments(folder), "--checkpoint=empty"], "empty/config.json is damaged", "--checkpoint")


def test_a_run_whose_model_has_changed(refused, folder: Path, run: Path):
    changed = folder / "changed"
    shutil.copytree(run, changed, dirs_exist_ok=True)
    made = read(run / "config.json")
    made["model"]["fingerprint"] = "0"
    (changed / "config.json").write_text(json.dumps(made))
    refused([*arguments(folder), "--checkpoint=changed"], "another model", "--checkpoint")


def test_a_run_whose_model_has_moved(refused, folder: Path, run: Path):
    moved = folder / "moved"
    shutil.copytree(run, moved, dirs_exist_ok=True)
    made = read(run / "config.json")
    made["config"]["model"]["path"] = made["model_path"] = "./gone"
    (moved / "config.json").write_text(json.dumps(made))
    given = [*arguments(folder), "--checkpoint=moved"]
    refused(given, "is not in ./gone any more; add --model")
    # Found where the command line says, and being the same it passes: the next check is the one that fails.
    refused([*given, f"--model={MODEL}", "--out=questions.json"], "questions.json is a file")


def test_results_of_other_settings_are_not_overwritten(refused, folder: Path, run: Path):
    given = [*arguments(folder)[:3], f"--checkpoint={MODEL}", "--out=kept"]
    call("evaluate", folder, *given)
    refused([*given, "--config.eval.samples=2"], "eval.samples (4 there, 2 now)", "--out")
    refused([*given, f"--checkpoint={run}/checkpoints/1"], "evaluated.step", "--out")
    refused([*arguments(folder), f"--out={run}"], "evaluated", "--out")

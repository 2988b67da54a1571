"""Semantics: what paths mean, and that a place which cannot be used is one sentence before anything is written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ttrl_jax import cli, evaluate, export, merge, train
from ttrl_jax.report import __main__ as report

ROOT = Path(__file__).parent.parent
CONFIG = f"--config={ROOT / 'configs' / 'quickstart.py'}"
COMMANDS = {
    "train": (train.main, dict(define=train.define_flags)),
    "evaluate": (evaluate.main, dict(define=evaluate.define_flags)),
    "export": (export.main, dict(define=export.define_flags, takes="RUN")),
    "merge": (merge.main, dict(define=cli.define_out_flag, takes="RECIPE.yml")),
    "report": (report.main, dict(define=cli.define_out_flag, takes="RUN", several=True)),
}
Call = Callable[..., tuple[int, str]]

pytestmark = pytest.mark.usefixtures("fresh_flags")


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call a command in an empty folder, with a home folder beside it -> (exit code, stderr)."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")

    def run(command: str, *arguments: str) -> tuple[int, str]:
        main, how = COMMANDS[command]
        configured = [CONFIG, "--config.mesh.fsdp=8"] if command in ("train", "evaluate") else []
        if any(each.startswith("--config=") for each in arguments):
            configured = configured[1:]
        monkeypatch.setattr(sys, "argv", [command, *configured, *arguments])
        code = cli.run(main, doc="", **how)
        return code, capfd.readouterr().err

    return run


def assert_refused(result: tuple[int, str], *words: str) -> None:
    code, stderr = result
    assert code == 2, stderr
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, f"not one line: {stderr}"
    for word in words:
        assert word in stderr, stderr
    assert not list(Path().iterdir()), "something was written"


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("train", ["--workdir=~/thesis"]),
        ("train", ["--config=~/thesis/own.py"]),
        ("evaluate", ["--out=~/thesis"]),
        ("evaluate", ["--checkpoint=~/thesis/none"]),
        ("export", ["~/thesis", "--out=out"]),
        ("merge", ["recipe.yml", "--out=~/thesis"]),
        ("merge", ["~/thesis/recipe.yml", "--out=out"]),
        ("report", ["~/thesis", "--out=report.html"]),
        ("report", ["~/thesis", "--out=~/thesis/report.html"]),
    ],
)
def test_the_home_folder(call: Call, tmp_path: Path, command: str, arguments: list[str]):
    """What is refused is in the home folder, and called by its full name."""
    (tmp_path / "home" / "thesis" / "report.html").mkdir(parents=True)
    write(tmp_path / "home" / "thesis" / "own.py", "def get_config(:\n")
    assert_refused(call(command, *arguments), str(tmp_path / "home" / "thesis"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare.py", "--config=~/none.py", "--out=~/out"],
        ["prepare_word_problems.py", "sample", "none.json", "--out=~/out"],
    ],
)
def test_the_home_folder_of_scripts(tmp_path: Path, arguments: list[str]):
    command = [sys.executable, str(ROOT / "scripts" / arguments[0]), *arguments[1:]]
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "~").exists()
    if arguments[0] == "compare.py":
        assert f"there is no config file {tmp_path / 'none.py'}" in done.stderr


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("train", ["--workdir=hdfs://host/run"], ["--workdir", "hdfs://host/run", "address"]),
        ("train", ["--config.model.path=gs://bucket/model"], ["model.path", "gs://bucket/model"]),
        ("train", ["--config.model.path=hf://someone/model"], ["model.path", "of the hub its name alone"]),
        ("train", ["--config.data.path=s3://bucket/x.jsonl"], ["data.path", "s3://bucket/x.jsonl"]),
        ("train", ["--config.task=gs://bucket/task.py"], ["task", "gs://bucket/task.py"]),
        ("train", ["--config.eval.tasks=other=https://host/x.json"], ["eval.tasks", "https://host/x.json"]),
        ("evaluate", ["--out=s3://bucket/out"], ["--out", "s3://bucket/out"]),
        ("evaluate", ["--checkpoint=s3://bucket/run"], ["--checkpoint", "s3://bucket/run"]),
        ("export", ["s3://bucket/run", "--out=out"], ["RUN", "s3://bucket/run"]),
        ("merge", ["recipe.yml", "--out=gs://bucket/out"], ["--out", "gs://bucket/out"]),
        ("merge", ["gs://bucket/recipe.yml", "--out=out"], ["RECIPE", "gs://bucket/recipe.yml"]),
        ("report", ["s3://bucket/run", "--out=report.html"], ["RUN", "s3://bucket/run"]),
        ("report", ["run", "--out=gs://bucket/report.html"], ["--out", "gs://bucket/report.html"]),
    ],
)
def test_addresses_that_cannot_be_used(call: Call, command: str, arguments: list[str], words: list[str]):
    assert_refused(call(command, *arguments), *words)

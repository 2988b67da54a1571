"""Semantics: what paths mean, and that a place which cannot be used is one sentence before anything is written."""

import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import assert_one_sentence

from ttrl_jax import cli, commands, evaluate, export, merge, train
from ttrl_jax.report import __main__ as report
from ttrl_jax.run import places

ROOT = Path(__file__).parent.parent
CONFIG = f"--config={ROOT / 'configs' / 'quickstart_sums.py'}"
COMMANDS = {
    "train": (train.main, commands.TRAIN),
    "evaluate": (evaluate.main, commands.EVALUATE),
    "export": (export.main, commands.EXPORT),
    "merge": (merge.main, commands.MERGE),
    "report": (report.main, commands.REPORT),
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
        code = cli.run(main, how)
        return code, capfd.readouterr().err

    return run


def assert_refused(result: tuple[int, str], *words: str) -> None:
    assert_one_sentence(result, *words)
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
        pytest.param(["compare.py", "--config=~/none.py", "--out=~/out"], marks=pytest.mark.slow),
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
        ("train", ["--workdir=hdfs://host/run"], ["--workdir", "hdfs://host/run cannot be used"]),
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


# ---------------------------------------------------------------------- places that cannot be written


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("train", ["--workdir=file/run"]),
        ("evaluate", ["--out=file/out"]),
        ("export", ["../run", "--out=file/out"]),
        ("merge", ["recipe.yml", "--out=file/out"]),
        ("report", ["../run", "--out=file/report.html"]),
        ("train", ["--workdir=/proc/run"]),
    ],
)
def test_what_cannot_be_written_is_said_first(call: Call, tmp_path: Path, command: str, arguments: list[str]):
    write(tmp_path / "run" / "config.json", '{"config": {"model": {"path": "none"}}, "model": {}}')
    file = write(tmp_path / "file")
    file.rename("file")
    code, stderr = call(command, *arguments)
    assert code == 2 and stderr.count("\n") == 1, stderr
    flag = arguments[-1].partition("=")[0]
    assert stderr.startswith(f"error: {flag}: ") and "cannot be written (" in stderr
    assert [path.name for path in Path().iterdir()] == ["file"]


@pytest.mark.slow
def test_a_comparison_that_cannot_be_written(tmp_path: Path):
    write(tmp_path / "file")
    command = [sys.executable, str(ROOT / "scripts" / "compare.py"), CONFIG, "--out=file/out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "--out: file/out cannot be written (Not a directory)" in done.stderr
    assert done.stdout == ""


def test_a_try_leaves_nothing_behind(tmp_path: Path):
    places.require_writable(tmp_path / "a" / "b", flag="--out")
    places.require_writable(tmp_path, flag="--out")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_package_that_is_missing_is_said_first(call: Call):
    assert_refused(call("train", "--config.log.wandb_project=mine", "--workdir=run"), "wandb is not installed")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_what_the_system_forbids_later_is_a_sentence(
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int
):
    monkeypatch.setattr(sys, "argv", ["train"])

    def main() -> int:
        raise OSError(number, os.strerror(number), "runs/x")

    assert cli.run(main, doc="") == 2
    assert re.fullmatch(r"error: .* 'runs/x'\); .*permissions\n", capfd.readouterr().err)


def on_disk(options: str, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ours with a disk of its own at `folder`, in a mount namespace that nothing else sees."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk")
    folder.mkdir()
    mount = f'mount -t tmpfs -o {options} tmpfs {folder} && exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def test_a_read_only_disk(tmp_path: Path):
    disk = tmp_path / "disk"
    done = on_disk("ro", disk, "ttrl_jax.evaluate", CONFIG, f"--out={disk / 'out'}")
    assert done.returncode == 2, done.stderr
    assert f"error: --out: {disk / 'out'} cannot be written (Read-only file system)" in done.stderr.splitlines()[-1]
    assert done.stdout == ""


SMALL = [
    "--config.data.limit=2", "--config.rollout.prompts=2", "--config.rollout.votes=4", "--config.train.samples=4",
    "--config.train.minibatch_prompts=2", "--config.train.micro_tokens=512", "--config.eval.samples=2",
    "--config.eval.tasks=()", "--config.checkpoint.keep=1",
]  # fmt: skip


@pytest.mark.slow
def test_what_was_measured_is_shown_where_it_cannot_be_written(tmp_path: Path):
    """Semantics: the disk holds the settings and no more."""
    out = tmp_path / "disk"
    done = on_disk("size=12k", out, "ttrl_jax.evaluate", CONFIG, *SMALL, "--config.eval.samples=16", f"--out={out}")
    assert done.returncode == 2, done.stderr
    assert "avg@16" in done.stdout and "wrote" not in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: the disk is full")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("left", [0, 3_000_000], ids=["rows", "checkpoint"])
def test_a_disk_that_fills_up(tmp_path: Path, left: int, processes: int):
    """Semantics: where rows, or only a checkpoint, cannot be written, all processes end with one code, and the sentence
    is the last line of each."""
    train = ["-m", "ttrl_jax.train", CONFIG, *SMALL, "--config.episodes=500", "--config.log.generations_every=1"]
    command = [sys.executable, str(ROOT / "tests" / "full_disk.py"), str(tmp_path), str(left), str(processes), *train]
    done = subprocess.run(["unshare", "--mount", *command], cwd=ROOT, capture_output=True, text=True)
    if "Operation not permitted" in done.stderr:
        pytest.skip("needs the right to mount a disk")
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout)
    assert ended["codes"] == [2] * processes, "\n".join(ended["said"])
    for said in ended["said"]:
        assert said.splitlines()[-1].startswith("error: the disk is full")

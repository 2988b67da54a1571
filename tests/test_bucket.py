"""Semantics and pulse: a run folder in a bucket, on an emulator of Google Cloud Storage on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import bucket
import jax
import jax.numpy as jnp
import numpy as np
import pod
import pytest
import tensorstore
from finished_run import results
from tiny_model import on_mesh

from ttrl_jax import cli, commands, export
from ttrl_jax.errors import InputError
from ttrl_jax.model import weights
from ttrl_jax.model.config import read_config
from ttrl_jax.report import __main__ as report
from ttrl_jax.run import folder, places
from ttrl_jax.run.checkpoint import Checkpoints, check_disk
from ttrl_jax.run.files import Files
from ttrl_jax.run.metrics import Lines, read_lines, write_json

ROOT = Path(__file__).parent.parent
EPISODES = 4  # of two steps
SMALL = [
    "--config=configs/quickstart_sums.py", f"--config.episodes={EPISODES}", "--config.data.limit=4",
    "--config.rollout.prompts=2", "--config.rollout.votes=4", "--config.train.samples=4",
    "--config.train.minibatch_prompts=2", "--config.train.micro_tokens=512", "--config.eval.samples=2",
    "--config.eval.tasks=()", "--config.log.generations_every=1",
]  # fmt: skip
Place = Callable[[str], Path]


@pytest.fixture(scope="module")
def emulator() -> Iterator[None]:
    """A bucket named `bucket`, in memory, which this process and those that it starts find by their environment."""
    with bucket.serve("bucket") as address, pytest.MonkeyPatch.context() as environment:
        environment.setenv("STORAGE_EMULATOR_HOST", address)  # gcsfs and Google's own packages
        environment.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        environment.setenv("GOOGLE_CLOUD_PROJECT", "project")
        environment.setenv("NO_GCE_CHECK", "true")  # nothing is asked of a network
        environment.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # which the emulator has not
        yield


@pytest.fixture
def place(emulator: None, request: pytest.FixtureRequest) -> Place:
    """A folder of the bucket that no other test uses."""
    return lambda name: places.run_folder(f"gs://bucket/{request.node.name}/{name}", flag="--workdir")


def names(where: Path) -> set[str]:
    return {path.name for path in where.iterdir()} if where.exists() else set()


def test_tensorstore_is_answered_as_by_the_service(place: Place):
    """An object's generation is told where it is read, and asked for where it is written; lists have bounds."""
    where = {"driver": "gcs", "bucket": "bucket", "path": f"{place('keys')}/".removeprefix("gs://bucket/")}
    store = tensorstore.KvStore.open(where).result()
    for key in ("a", "b", "c"):
        store[key] = b"first"
    read = store.read("a").result().stamp.generation
    assert read == store.read("a", if_not_equal=b"").result().stamp.generation != b""
    written = store.write("a", b"second", if_equal=read).result().generation
    assert written not in (read, b"") and store["a"] == b"second"
    assert store.write("a", b"third", if_equal=read).result().generation == b"" and store["a"] == b"second"
    assert store.read("a", if_not_equal=written).result().state == "unspecified"
    store.delete_range(tensorstore.KvStore.KeyRange("b", "c")).result()
    assert store.list().result() == [b"a", b"c"]


def test_rows_are_there_once_flushed_and_later_ones_are_dropped(place: Place):
    path = place("run") / "votes.jsonl"
    with Lines(path, start_step=0) as lines:
        lines.write([{"step": 0, "text": "\ud835 é"}])
        assert not path.exists()
        lines.flush()
        assert path.read_bytes() == '{"step": 0, "text": "\\ud835 é"}\n'.encode()
        lines.write([{"step": 1}])
        lines.write([{"step": 2}])
    assert [row["step"] for row in read_lines(path)[0]] == [0, 1, 2]
    with Lines(path, start_step=2) as lines:
        assert [row["step"] for row in read_lines(path)[0]] == [0, 1]
        lines.write([{"step": 2, "again": True}])
    assert read_lines(path)[0][1:] == [{"step": 1}, {"step": 2, "again": True}]


ROW = {"question": "1 + 1?", "majority": "2", "samples": [{"response": "2", "answer": "2"}]}


def test_files_of_a_run(place: Place):
    where = place("run")
    with Files(where, start_step=0, tensorboard=True, wandb_project=None) as files:
        files.write(0, {"a": 0.5}, [{"step": 0}])
        files.generations("train", 0, [ROW])
        files.flush()
        assert names(where) >= {"metrics.jsonl", "votes.jsonl", "rollouts"}
        files.write(1, {"a": float("nan")})
    assert read_lines(where / "metrics.jsonl") == ([{"step": 0, "a": 0.5}, {"step": 1, "a": None}], 0)
    [events] = (where / "tensorboard").iterdir()
    assert len(events.read_bytes()) > 100
    assert [path.name for path in (where / "rollouts").glob("*.jsonl")] == ["train_000000.jsonl"]


def test_a_run_folder(place: Place):
    """It belongs to one config, as on a disk."""
    where, model = place("run"), {"fingerprint": "f", "tokenizer": "t"}
    run, defaults = folder.Identity({"seed": 0}, model, None, {}), {"seed": 0}
    folder.require_same(where, run, defaults=defaults, flag="--workdir")
    folder.claim(where, run)
    folder.require_same(where, run, defaults=defaults, flag="--workdir")
    with pytest.raises(InputError, match=r"gs://bucket/.*/run was made with another config, it differs in seed"):
        folder.require_same(where, replace(run, config={"seed": 1}), defaults=defaults, flag="--workdir")
    assert folder.find_run(where) is None and folder.read_summary(where) is None
    assert folder.find_run(where / "checkpoints" / "3") == (where, 3)
    write_json(where / folder.SUMMARY, {"steps": 2})
    assert folder.read_summary(where) == {"steps": 2}
    check_disk(where, needed_bytes=10**18)  # a bucket is never full


def test_checkpoints(place: Place):
    where = place("run") / "checkpoints"
    state = {"policy": {"w": jnp.arange(1000.0)}, "step": jnp.int32(4)}
    with Checkpoints(where, keep=2) as checkpoints:
        assert checkpoints.latest() is None
        for step in (1, 2, 3):
            assert checkpoints.save(step, state, {"at": step})
    assert names(where) == {"2", "3"}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    with Checkpoints(str(where), keep=None) as checkpoints:
        assert checkpoints.latest() == 3 and checkpoints.meta(3) == {"at": 3}
        restored = checkpoints.restore(3, shapes)
        part = checkpoints.restore_part(2, "policy", shapes["policy"])
        with pytest.raises(InputError, match=r"there is no checkpoint gs://bucket/.*/1; the newest is 3"):
            checkpoints.meta(1)
    np.testing.assert_array_equal(restored["policy"]["w"], state["policy"]["w"])
    np.testing.assert_array_equal(part["w"], state["policy"]["w"])
    assert restored["step"] == 4
    with pytest.raises(InputError, match="no such folder"):
        Checkpoints(place("none"), keep=None)


def test_a_place_that_can_be_written_and_one_that_cannot(place: Place):
    places.require_writable(place("run"), flag="--workdir")
    assert not place("run").exists()
    absent = places.run_folder("gs://none/run", flag="--workdir")
    with pytest.raises(InputError, match="^--workdir: gs://none/run cannot be written"):
        places.require_writable(absent, flag="--workdir")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'--workdir: gs://bucket/run needs .* pip install -e ".\[gcs\]"'):
        places.run_folder("gs://bucket/run", flag="--workdir")


# ---------------------------------------------------------------------- the commands


def start(module: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", f"ttrl_jax.{module}", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(module: str, *arguments: str) -> str:
    process = start(module, *arguments)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def saved(workdir: Path) -> set[str]:
    """Steps whose checkpoint is complete."""
    found = names(workdir / "checkpoints")
    return {step for step in found if (workdir / "checkpoints" / step / "commit_success.txt").exists()}


@pytest.mark.slow
@pytest.mark.timeout(1200)  # five processes, one after the other
def test_a_killed_run_ends_as_one_on_a_disk_and_is_used(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_flags: Callable[[], None]
):
    """Invariance: SIGKILL after the second checkpoint; then evaluate, export and report read the run."""
    alone, workdir = tmp_path / "run", place("run")
    finish("train", *SMALL, f"--workdir={alone}")
    process = start("train", *SMALL, f"--workdir={workdir}")
    while not saved(workdir) & {"4", "6"}:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (workdir / "summary.json").exists()
    last = max(map(int, saved(workdir)))
    assert f"resumed after step {last}" in finish("train", *SMALL, f"--workdir={workdir}")
    assert results(workdir) == results(alone)
    assert not (ROOT / "gs:").exists()

    finish("evaluate", *SMALL, f"--checkpoint={workdir}", f"--out={place('out')}")
    assert names(place("out")) == {"config.json", "generations.jsonl", "results.json", "undecided.jsonl"}
    found, expected = [json.loads(path.read_text()) for path in (place("out") / "results.json", alone / "summary.json")]
    assert found["results"]["data"] == expected["after"] and found["params_sha256"] == expected["params_sha256"]

    model, page = tmp_path / "hf", tmp_path / "report.html"
    monkeypatch.setattr(sys, "argv", ["export", str(workdir), f"--out={model}"])
    assert cli.run(export.main, commands.EXPORT) == 0
    with on_mesh((1, 1, 1)) as mesh:
        assert weights.sha256(weights.load(model, read_config(model), mesh)) == expected["params_sha256"]
    fresh_flags()
    monkeypatch.setattr(sys, "argv", ["report", str(workdir), f"--out={page}"])
    assert cli.run(report.main, commands.REPORT) == 0
    assert json.dumps(found["results"]["data"]["majority_ratio"])[:5] in page.read_text()


@pytest.mark.slow
def test_two_processes_write_one_run(place: Place):
    """Pulse: each sends its part of a checkpoint; started again, both see that the run is finished."""
    workdir = place("run")
    command = ["-m", "ttrl_jax.train", *SMALL, "--config.episodes=2", f"--workdir={workdir}"]
    for words in (f"everything is in {workdir}", f"{workdir} is finished"):
        codes, said = pod.finish(pod.start(command, processes=2, devices=1), seconds=280)
        assert codes == [0, 0], "\n".join(said)
        assert words in said[0]
    assert saved(workdir) == {"2", "4"}
    assert [row["step"] for row in results(workdir)["metrics"]] == list(range(5))

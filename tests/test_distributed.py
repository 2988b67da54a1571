"""Invariance and semantics: one process with 8 devices, two with 4 and four with 2 compute the same; what processes
tell each other."""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pod
import pod_work
import pytest

from ttrl_jax.errors import InputError
from ttrl_jax.model.shapes import parameter_count
from ttrl_jax.model.sharding import make_mesh, require_fit, require_fit_of_batch
from ttrl_jax.rollout import hosts
from ttrl_jax.run import distributed

WORK = str(Path(pod_work.__file__))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """By the number of processes (two with 4 devices, four with 2) the folder of what they have done, once."""

    @functools.cache
    def done(processes: int) -> Path:
        folder = tmp_path_factory.mktemp(f"job{processes}")
        work = ["meetings", "samples", "updates"] + ["save"] * (processes == 2) + ["failures"]
        do(work, folder, processes=processes, devices=8 // processes)
        return folder

    return done


def do(work: list[str], folder: Path, *, processes: int, devices: int) -> None:
    codes, said = pod.finish(pod.start([WORK, *work, str(folder)], processes=processes, devices=devices))
    assert codes == [0] * processes, "\n".join(said)


alone = functools.cache(pod_work.scores_and_gradients)  # by mesh, in one process


def read(folder: Path, shape) -> tuple[np.ndarray, list[np.ndarray]]:
    with np.load(folder / f"{shape}.npz") as found:
        logps, *gradients = (found[f"arr_{i}"] for i in range(len(found)))
    return logps, gradients


def assert_same_update(got, want) -> None:
    """Log-probs within 1e-5, each gradient within 1e-5 of its norm."""
    (logps, gradients), (want_logps, want_gradients) = got, want
    assert (want_logps < 0).sum() > 50
    np.testing.assert_allclose(logps, want_logps, atol=1e-5, rtol=0)
    for gradient, expected in zip(gradients, want_gradients, strict=True):
        assert np.linalg.norm(expected) > 1e-3
        assert np.linalg.norm(gradient - expected) <= 1e-5 * np.linalg.norm(expected)


def with_processes(cases: dict[int, list]) -> list:
    """(processes, case) for each, of which those of four are slow: each of them compiles all that it runs."""
    return [
        pytest.param(processes, case, marks=pytest.mark.slow if processes == 4 else (), id=f"{processes}-{case}")
        for processes, all_of in cases.items()
        for case in all_of
    ]


@pytest.mark.parametrize(("processes", "shape"), with_processes(pod_work.UPDATED))
def test_every_mesh_scores_and_learns_the_same(job, processes: int, shape):
    """Invariance: in one process, in two and in four."""
    assert_same_update(alone(shape), alone((1, 8, 1)))
    assert_same_update(read(job(processes), shape), alone((1, 8, 1)))


@pytest.mark.parametrize(("processes", "sampled"), with_processes(pod_work.SAMPLED))
def test_responses_are_those_of_one_process(job, processes: int, sampled: tuple[int, bool]):
    """Invariance: each host by itself (with 3 prompts, one of four has none), or all devices together."""
    prompts, host = sampled
    want = pod_work.sampled((1, 4, 2), prompts=prompts, host=False)
    texts = want.texts
    with np.load(job(processes) / f"{prompts}-{host}.npz") as found:
        for name in ("tokens", "lengths", "truncated"):
            np.testing.assert_array_equal(found[name], getattr(want, name), err_msg=name)
        np.testing.assert_allclose(found["logps"], want.logps, atol=1e-5)
        assert json.loads(found["texts"].item()) == texts and len({text for group in texts for text in group}) > 8
        assert found["slot_steps"] >= (want.lengths - 1).sum() > 0


@pytest.mark.parametrize(("processes", "sampled"), with_processes(pod_work.SAMPLED))
def test_votes_stop_as_those_of_one_process(job, processes: int, sampled: tuple[int, bool]):
    """Invariance: the votes that count are the same, wherever they are drawn, and the others are zeros."""
    prompts, host = sampled
    want = pod_work.sampled((1, 4, 2), prompts=prompts, host=False, stops=True)
    counts = want.counted.sum(1)
    assert set(counts) == ({3, 4} if prompts == 5 else {4})  # of 4; of three prompts none is certain any earlier
    with np.load(job(processes) / f"{prompts}-{host}-stops.npz") as found:
        for name in ("counted", "tokens", "lengths", "truncated"):
            np.testing.assert_array_equal(found[name], getattr(want, name), err_msg=name)
        assert json.loads(found["texts"].item()) == want.texts and [len(row) for row in want.texts] == counts.tolist()


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_what_one_raises_all_raise(job, processes: int):
    """Semantics: the error of one process, and a fact that differs in one, end all with the same sentence."""
    said = [(job(processes) / f"refusals{i}").read_text() for i in range(processes)]
    assert len(set(said)) == 1
    raised, differs = said[0].splitlines()
    assert raised == "the last one cannot read its file"
    assert differs.startswith(f"process {processes - 1} differs from process 0 in the files of model.path; start all")


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_what_process_0_fails_at_alone_all_raise_when_they_meet(job, processes: int):
    """Semantics: and nothing is done after it, as if that had not been missing."""
    folder = job(processes)
    assert [(folder / f"failed{i}").read_text() for i in range(processes)] == ["ENOSPC"] * processes
    assert (folder / "before").exists() and not (folder / "after").exists()


@pytest.mark.parametrize(("processes", "devices"), [(1, 1), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_a_checkpoint_of_two_processes_is_restored_by_one_and_by_four(job, processes: int, devices: int):
    """Semantics: saved on 2 x 4 devices, read bitwise on 1 x 8, 1 x 1 and 4 x 2."""
    folder = job(2)
    pod_work.restore(folder)
    count = int((folder / "restored").read_text())
    assert count > 30
    (folder / "restored").unlink()
    do(["restore"], folder, processes=processes, devices=devices)
    assert int((folder / "restored").read_text()) == count
    (folder / "restored").unlink()


@pytest.mark.parametrize(
    ("coordinator", "num_processes", "process_id", "words"),
    [
        ("here:1234", None, 0, "--num_processes is missing"),
        ("", 2, None, "--coordinator and --process_id is missing"),
        ("here", 2, 0, "HOST:PORT"),
        (":80", 2, 0, "HOST:PORT"),
        ("here:1234", 2, 2, "got 2 of 2"),
        ("here:1234", 0, 0, "got 0 of 0"),
    ],
)
def test_flags_that_do_not_fit_together(coordinator, num_processes, process_id, words: str):
    """Semantics: one sentence, before any network is used."""
    with pytest.raises(InputError, match=words):
        distributed.start(coordinator=coordinator, num_processes=num_processes, process_id=process_id)


@pytest.mark.parametrize("process_id", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_others_that_never_come(process_id: int):
    """Semantics: the first waits for another one, the second for the first; one sentence, and start me again."""
    work = (
        "from ttrl_jax.run import distributed\n"
        "distributed.JOIN = 2\n"
        f"distributed.start(coordinator='localhost:{pod.free_port()}', num_processes=2, process_id={process_id})"
    )
    done = subprocess.run([sys.executable, "-c", work], cwd=pod.ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 75, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the other processes did not come to localhost:") and "within 2 seconds" in last


@pytest.mark.parametrize(
    ("environment", "launched"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),  # a batch script, without srun
        ({"SLURM_STEP_NODELIST": "a", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, False),  # a shell in a job
        ({"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, False),  # with JAX_PLATFORMS=cpu
    ],
)
def test_only_a_launcher_of_several_is_followed(monkeypatch: pytest.MonkeyPatch, environment, launched: bool):
    """Semantics: a shell inside a job, or a job of one task, is a single process."""
    for name in ("SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed._launched() is launched


@pytest.mark.parametrize(("hosts_env", "launched"), [("localhost", False), ("a,b", True), (None, True)])
def test_a_tpu_of_one_host_is_a_single_process(monkeypatch: pytest.MonkeyPatch, hosts_env, launched: bool):
    """Semantics: GKE names the hosts; elsewhere JAX asks the metadata."""
    before = jax.config.jax_platforms
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    if hosts_env is not None:
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", hosts_env)
    jax.config.update("jax_platforms", "tpu,cpu")
    try:
        assert distributed._launched() is launched
    finally:
        jax.config.update("jax_platforms", before)


def test_a_single_process_meets_itself():
    """Semantics: without a runtime, every function is the obvious."""
    assert distributed.leader() and not distributed.several() and distributed.leave(3) == 3
    assert distributed.signalled(None) is None and distributed.signalled(15) == 15
    assert distributed.gather(lambda: 5) == [5] and distributed.each(str, [1, 2]) == ["1", "2"]
    with pytest.raises(KeyError):
        distributed.together(lambda: {}["x"])


def test_meshes_that_do_not_fit_are_refused_with_those_that_would():
    """Semantics: sizes against devices, heads and questions."""
    with pytest.raises(InputError, match=r"3 x -1 x 1 does not fit 8 devices; choose from \[1, 2, 4, 8\]"):
        make_mesh(data=3, fsdp=-1, tensor=1)
    mesh = make_mesh(data=2, fsdp=1, tensor=4)
    require_fit(mesh, heads=12)
    with pytest.raises(InputError, match=r"mesh.tensor=4 does not divide the 6 heads of the model; .* \[1, 2\]"):
        require_fit(mesh, heads=6)
    require_fit_of_batch(mesh, prompts=6)
    with pytest.raises(InputError, match=r"mesh.data=2 does not divide rollout.prompts=5; set it to one of \[1\]"):
        require_fit_of_batch(mesh, prompts=5)


def test_a_host_samples_by_itself_where_it_can_hold_what_that_needs():
    """Hand-worked: weights over tensor, cache over fsdp and tensor, what training keeps over the whole mesh."""
    model = pod_work.LLAMA  # kv heads 2, head size 6, layers 2
    whole, host = make_mesh(data=1, fsdp=4, tensor=2), make_mesh(data=1, fsdp=4, tensor=2)
    count = parameter_count(model)
    found = hosts.sampling_bytes(model, host, mesh=whole, itemsize=2, rows=100, tokens=50, kept_bytes=14 * count)
    assert found == 2 * count / 2 + 2 * 2 * (2 / 2) * 6 * 2 * 100 * 50 / 4 + 14 * count / 8


class Device:
    """A device that says how much of its memory may be used."""

    def __init__(self, platform: str, limit: int | None):
        self.platform, self._stats = platform, None if limit is None else {"bytes_limit": limit}

    def memory_stats(self):
        return self._stats


@pytest.mark.parametrize(
    ("platform", "limit", "said"),
    [
        ("gpu", int(64e9), "71.0 GB .* 64.0 may be used: set XLA_CLIENT_MEM_FRACTION=0.95 .*, mesh.offload=True, or a"),
        ("tpu", int(64e9), "71.0 GB .* 64.0 may be used: set mesh.offload=True, or a smaller rollout.rows"),
        ("gpu", int(72e9), None),
        ("cpu", None, None),
    ],
)
def test_too_little_memory_is_said_before_it_is_needed(platform, limit, said):
    mesh = SimpleNamespace(devices=np.array([[[Device(platform, limit)]]]))
    found = hosts.shortage(mesh, 71e9)
    assert found is None if said is None else re.search(said, found)

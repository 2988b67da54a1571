"""Semantics: the commands that start a run on many hosts, as --dry-run shows them; the batch script is run by bash."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "launch.py"
TRAINING = ["--", "--config", "configs/aime.py:Qwen/Qwen2.5-Math-7B", "--config.eval.tasks=('a b',)"]
TRAINED = "-m ttrl_jax.train --config configs/aime.py:Qwen/Qwen2.5-Math-7B '--config.eval.tasks=('\"'\"'a b'\"'\"',)'"


def launch(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, cwd=folder)


def shown(*arguments: str) -> list[str]:
    done = launch(*arguments, "--dry-run", *TRAINING)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def tpu_vm(*arguments: str) -> list[list[str]]:
    lines = shown("tpu-vm", "--name=one", "--zone=us-west4-a", *arguments)
    assert lines[-1].startswith("# to take it away: gcloud compute tpus ")
    return [shlex.split(line) for line in lines[:-1]]


@pytest.mark.parametrize(
    ("topology", "kind", "version"),
    [
        ("v5e:4x4", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v6e:16x16", "v6e-256", "v2-alpha-tpuv6e"),
        ("v5p:2x2x2", "v5p-16", "v2-alpha-tpuv5"),
        ("v4:2x2x4", "v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_a_slice_of_each_kind(topology: str, kind: str, version: str):
    """v5e and v6e count chips, v4 and v5p their cores."""
    create = tpu_vm(f"--topology={topology}")[0]
    assert create[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "one"]
    assert set(create[6:]) == {f"--version={version}", "--zone=us-west4-a", f"--accelerator-type={kind}"}


def test_a_slice_is_filled_and_started_on_all_its_hosts():
    _, archive, copy, prepare, start = tpu_vm("--topology=v5e:4x4")
    assert archive[:2] == ["git", "-C"] and archive[-1] == "HEAD"
    assert copy[3:7] == ["tpu-vm", "scp", "one.tar.gz", "one:one.tar.gz"] and copy[-1] == "--worker=all"
    for command in (prepare, start):
        assert command[3:6] == ["tpu-vm", "ssh", "one"] and command[7] == "--worker=all"
    assert 'uv pip install -q -e ".[tpu]"' in prepare[-1]
    assert f"nohup .venv/bin/python {TRAINED} > train.log" in start[-1]
    for command in (prepare, start):
        subprocess.run(["bash", "-n", "-c", command[-1].removeprefix("--command=")], check=True)


def test_what_is_started_on_a_host_shows_its_log_and_has_the_runs_exit_code(tmp_path: Path):
    """The host's shell command, with another program in the place of Python."""
    command = tpu_vm("--topology=v5e:4x4")[-1][-1].removeprefix("--command=")
    python = tmp_path / "ttrl_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\necho "first $2"\nsleep 1\necho last >&2\nexit 3\n')
    python.chmod(0o755)
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "first ttrl_jax.train" in done.stdout and "last" in done.stdout


def test_a_slice_out_of_the_queue(tmp_path: Path):
    ask, wait, *_ = tpu_vm("--topology=v5p:2x2x2", "--queued", "--spot")
    assert ask[3:6] == ["queued-resources", "create", "one"]
    assert set(ask[6:]) == {
        "--node-id=one", "--runtime-version=v2-alpha-tpuv5", "--zone=us-west4-a", "--accelerator-type=v5p-16", "--spot"
    }  # fmt: skip
    # What waits, with a gcloud that says one state; where it is never granted, it does not wait.
    gcloud = tmp_path / "gcloud"
    for state, code in (("ACTIVE", 0), ("FAILED", 1), ("SUSPENDED", 1)):
        gcloud.write_text(f"#!/bin/bash\necho {state}\n")
        gcloud.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        assert subprocess.run(wait, env=os.environ | {"PATH": path}, timeout=20).returncode == code


def test_a_jobset_by_xpk():
    lines = shown("gke", "--name=one", "--topology=v6e:4x4", "--cluster=c", "--zone=z", "--project=p")
    command = shlex.split(lines[0])
    assert command[:3] == ["xpk", "workload", "create"]
    expected = {"--workload=one", "--cluster=c", "--project=p", "--zone=z", "--tpu-type=v6e-16", "--num-slices=1"}
    expected |= {"--base-docker-image=python:3.12", f"--script-dir={SCRIPT.parent.parent}", "--max-restarts=100"}
    expected |= {"--restart-on-exit-codes=75"}  # a run that another host has left
    assert set(command[3:-1]) == expected
    assert command[-1] == f'--command=pip install -q -e ".[tpu]" && python {TRAINED}'
    assert lines[1] == "# to take it away: xpk workload delete --workload=one --cluster=c --project=p --zone=z"


def slurm_script(*arguments: str) -> str:
    lines = shown("slurm", "--name=one", "--nodes=2", "--gpus=8", *arguments)
    assert lines[0] == "sbatch <<'END'" and lines[-2:] == ["END", "# to take it away: scancel --name=one"]
    return "\n".join(lines[1:-2]) + "\n"


def test_a_batch_job_of_one_process_for_each_gpu():
    script = slurm_script("--hours=4", "--partition=h100")
    settings = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE))
    assert settings == {
        "job-name": "one", "nodes": "2", "ntasks-per-node": "8", "gpus-per-node": "8", "time": "4:00:00",
        "output": "one-%j.log", "open-mode": "append", "signal": "TERM@300", "partition": "h100", "requeue": "",
    }  # fmt: skip
    assert f"srun --kill-on-bad-exit=0 --wait=120 {sys.executable} {TRAINED}" in script
    assert "partition" not in slurm_script()


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (75, True), (143, True)])
def test_a_job_goes_back_into_the_queue_when_it_can_go_on(tmp_path: Path, code: int, again: bool):
    """The script itself under bash, with commands of SLURM that say what they were called with."""
    for name, line in (("srun", f"exit {code}"), ("scontrol", 'echo "scontrol $@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash"], input=slurm_script(), env=environment, capture_output=True, text=True)
    assert done.stdout == ("scontrol requeue 17\n" if again else "")
    assert done.returncode == (0 if again else code)


def test_commands_run_until_one_fails(tmp_path: Path):
    """With a gcloud that refuses: nothing after it is run, and its exit code is ours."""
    (tmp_path / "gcloud").write_text('#!/bin/bash\necho "$@" >> calls\nexit 7\n')
    (tmp_path / "gcloud").chmod(0o755)
    command = [sys.executable, SCRIPT, "tpu-vm", "--name=one", "--zone=z", "--topology=v5e:4x4", *TRAINING]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 7 and "exit code 7" in done.stderr
    assert len((tmp_path / "calls").read_text().splitlines()) == 1 and not (tmp_path / "one.tar.gz").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tpu-vm", "--name=one", "--zone=z", "--topology=v9:4x4", *TRAINING], "v5e:4x4"),
        (["tpu-vm", "--name=one", "--zone=z", "--topology=v5e", *TRAINING], "KIND:SHAPE"),
        (["slurm", "--name=one", "--nodes=1", "--gpus=1"], "-- --config"),
    ],
)
def test_mistakes(arguments: list[str], words: str):
    done = launch(*arguments)
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1] and done.stdout == ""

"""Semantics: a run folder has one writer."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ttrl_jax.errors import InputError
from ttrl_jax.run.lock import LOCK, WriterLock

HOLDS = """
import sys, time
from pathlib import Path
from ttrl_jax.run.lock import WriterLock
with WriterLock(Path(sys.argv[1]), flag="--workdir", say=print):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock until its stdin ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], **pipes)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_refused_by_name(tmp_path: Path, holder: subprocess.Popen):
    said = []
    with pytest.raises(InputError, match=f"written by process {holder.pid} on .*, since .* another --workdir"):
        WriterLock(tmp_path, flag="--workdir", say=said.append).__enter__()
    holder.communicate("")
    with WriterLock(tmp_path, flag="--workdir", say=said.append):
        pass
    assert said == [] and holder.returncode == 0


def test_the_lock_of_a_process_that_died_is_taken_over(tmp_path: Path, holder: subprocess.Popen):
    holder.kill()
    holder.wait()
    said = []
    with WriterLock(tmp_path, flag="--workdir", say=said.append):
        assert f"process {os.getpid()} on" in str(pytest.raises(InputError, second, tmp_path).value)
    assert len(said) == 1 and f"process {holder.pid} on" in said[0] and "ended without letting go" in said[0]


def second(folder: Path) -> None:
    with WriterLock(folder, flag="--workdir", say=print):
        pass


def test_a_lock_cut_off_by_the_end_of_its_writer(tmp_path: Path):
    (tmp_path / LOCK).write_text('{"host": "no')
    said = []
    with WriterLock(tmp_path, flag="--workdir", say=said.append):
        pass
    assert len(said) == 1 and "a process has ended" in said[0]


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_locks(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    said = []
    with WriterLock(tmp_path / "run", flag="--workdir", say=said.append):
        pass
    assert len(said) == 1 and "without locks" in said[0] and "second process" in said[0]

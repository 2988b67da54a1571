"""Start a command as several processes on this machine, for tests."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def start(command: list[str], *, processes: int, devices: int) -> list[subprocess.Popen]:
    """Start `command` so often, each with its own --process_id and `devices` CPU devices."""
    port = free_port()
    return [start_one(command, index=i, processes=processes, devices=devices, port=port) for i in range(processes)]


def start_one(command: list[str], *, index: int, processes: int, devices: int, port: int) -> subprocess.Popen:
    """Start one of them. Its stderr goes with its stdout."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    which = [f"--coordinator=localhost:{port}", f"--num_processes={processes}", f"--process_id={index}"]
    return subprocess.Popen(
        [sys.executable, *command, *which],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(started: list[subprocess.Popen], *, seconds: float = 400) -> tuple[list[int], list[str]]:
    """Exit codes and what was printed, once all have ended; those that have not in time are killed."""
    try:
        said = [process.communicate(timeout=seconds)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], said

"""Run a training on a disk that fills up: unshare --mount python full_disk.py FOLDER LEFT PROCESSES COMMAND ...

FOLDER gets a small disk of its own, in a mount namespace that nothing else sees. Once the run in FOLDER/run has written
3 rows, the disk is kept so full that LEFT bytes are free. Prints what the processes end with and say, as JSON.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pod

DISK = 40_000_000


def main(folder: str, left: str, processes: str, *command: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder], check=True)
    workdir, filler = Path(folder) / "run", Path(folder) / "filler"
    command = (*command, f"--workdir={workdir}")
    if int(processes) == 1:
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started = [subprocess.Popen([sys.executable, *command], cwd=pod.ROOT, env=environment, **pipes)]
    else:
        started = pod.start(list(command), processes=int(processes), devices=1)
    rows = workdir / "metrics.jsonl"
    while all(process.poll() is None for process in started):
        if rows.is_file() and rows.read_bytes().count(b"\n") >= 3:
            fill(filler, left=int(left))
        time.sleep(0.02)
    codes, said = pod.finish(started)
    print(json.dumps({"codes": codes, "said": said}))


def fill(filler: Path, *, left: int) -> None:
    disk = os.statvfs(filler.parent)
    more = disk.f_bavail * disk.f_frsize - left
    if more > 0:
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:  # the run was faster
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), more)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Start a run on many hosts: a TPU VM slice, a GKE cluster or a SLURM cluster.

    python scripts/launch.py tpu-vm --name ttrl --topology v5e:4x4 --zone us-west4-a -- --config configs/aime.py
    python scripts/launch.py gke --name ttrl --topology v5e:4x4 --cluster mine --zone us-west4-a --project mine \\
        --image python:3.12 -- --config configs/aime.py
    python scripts/launch.py slurm --name ttrl --nodes 2 --gpus 8 -- --config configs/aime.py

What follows `--` are the arguments of `python -m ttrl_jax.train`; the workdir must be where all hosts reach it (gs://...
or a shared file system). --dry-run prints what would be run, and runs nothing. Nothing is deleted: the last line says how.

tpu-vm asks for the slice (--queued: in the queue of Google Cloud; --spot: at the price of what may be taken away), puts
this checkout on every host, installs it there, and starts all hosts at once. gke hands a JobSet to xpk, which starts it
again after a preemption. slurm submits a batch job of one process for each GPU, and puts it in the queue again when it
leaves with exit code 75: saved, and to be gone on with.
"""

import argparse
import math
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Of each kind of TPU: the name of a slice (for v4 and v5p it counts cores, of which a chip has two), and what its hosts
# run. https://cloud.google.com/tpu/docs/runtimes
KINDS = {
    "v4": ("v4-{cores}", "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod-{chips}", "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p-{cores}", "v2-alpha-tpuv5"),
    "v6e": ("v6e-{chips}", "v2-alpha-tpuv6e"),
}
AGAIN = 75  # exit code of a run that saved after a signal (EX_TEMPFAIL of sysexits.h)


class Script(str):
    """A batch script for SLURM, which goes to sbatch instead of being run here."""


def main() -> int:
    argv, training = split(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_subparsers(dest="where", required=True)
    for name, flags in {
        "tpu-vm": ("topology", "zone"),
        "gke": ("topology", "cluster", "zone", "project", "image"),
        "slurm": ("nodes", "gpus"),
    }.items():
        one = where.add_parser(name)
        one.add_argument("--name", required=True, help="of the job and of what it runs on")
        one.add_argument("--dry-run", action="store_true", help="print what would be run")
        for flag in flags:
            one.add_argument(f"--{flag}", required=True, type=int if flag in ("nodes", "gpus") else str)
        if name == "tpu-vm":
            one.add_argument("--queued", action="store_true", help="ask for it in the queue, and wait")
            one.add_argument("--spot", action="store_true", help="what may be taken away at any time")
        if name == "slurm":
            one.add_argument("--partition", help="of the cluster")
            one.add_argument("--hours", type=int, default=24, help="time limit; default: %(default)s")
    given = parser.parse_args(argv)
    if not training:
        parser.error("the arguments of the training are missing; give them after --, such as -- --config FILE.py")
    make = {"tpu-vm": tpu_vm, "gke": gke, "slurm": slurm}[given.where]
    try:
        commands, hint = make(given, training)
    except ValueError as error:
        parser.error(str(error))
    return run(commands, hint, dry=given.dry_run)


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """What is before and what is after the first --."""
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def accelerator(topology: str) -> tuple[str, str]:
    """What Google Cloud calls a slice such as v5e:4x4, and the version that its hosts run. Raises ValueError."""
    kind, _, shape = topology.partition(":")
    sizes = shape.split("x")
    if kind not in KINDS or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise ValueError(f"--topology must be KIND:SHAPE, such as v5e:4x4, with a KIND of {', '.join(KINDS)}")
    chips = math.prod(map(int, sizes))
    name, version = KINDS[kind]
    return name.format(chips=chips, cores=2 * chips), version


def trained(training: list[str], *flags: str) -> str:
    """The training command, as a shell reads it."""
    return shlex.join(["python3", "-m", "ttrl_jax.train", *flags, *training])


def tpu_vm(given: argparse.Namespace, training: list[str]) -> tuple[list[list[str]], str]:
    """The commands, and how to get rid of what they made."""
    kind, version = accelerator(given.topology)
    gcloud, zone = ["gcloud", "compute", "tpus"], f"--zone={given.zone}"
    spot = ["--spot"] if given.spot else []
    if given.queued:
        asked = ["queued-resources", "create", given.name, f"--node-id={given.name}", f"--runtime-version={version}"]
        state = f"gcloud compute tpus queued-resources describe {given.name} {zone} --format='value(state.state)'"
        wait = [["bash", "-c", f'until [ "$({state})" = ACTIVE ]; do sleep 30; done']]
        gone = f"gcloud compute tpus queued-resources delete {given.name} {zone} --force"
    else:
        asked = ["tpu-vm", "create", given.name, f"--version={version}"]
        wait, gone = [], f"gcloud compute tpus tpu-vm delete {given.name} {zone}"

    def everywhere(command: str) -> list[str]:
        return [*gcloud, "tpu-vm", "ssh", given.name, zone, "--worker=all", f"--command={command}"]

    archive = "ttrl_jax.tar.gz"
    unpack = f'mkdir -p ttrl_jax && tar xzf {archive} -C ttrl_jax && cd ttrl_jax && pip install -q -e ".[tpu]"'
    return [
        [*gcloud, *asked, zone, f"--accelerator-type={kind}", *spot],
        *wait,
        ["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={archive}", "HEAD"],
        [*gcloud, "tpu-vm", "scp", archive, f"{given.name}:{archive}", zone, "--worker=all"],
        everywhere(unpack),
        everywhere(f"cd ttrl_jax && {trained(training)}"),
    ], gone


def gke(given: argparse.Namespace, training: list[str]) -> tuple[list[list[str]], str]:
    kind, _ = accelerator(given.topology)
    place = [f"--cluster={given.cluster}", f"--project={given.project}", f"--zone={given.zone}"]
    command = f'pip install -q -e ".[tpu]" && {trained(training)}'
    return [
        [
            "xpk", "workload", "create", f"--workload={given.name}", *place, f"--tpu-type={kind}", "--num-slices=1",
            f"--base-docker-image={given.image}", f"--script-dir={ROOT}", "--max-restarts=100", f"--command={command}",
        ]
    ], shlex.join(["xpk", "workload", "delete", f"--workload={given.name}", *place])  # fmt: skip


def slurm(given: argparse.Namespace, training: list[str]) -> tuple[list[list[str]], str]:
    partition = [f"#SBATCH --partition={given.partition}"] if given.partition else []
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={given.name}",
        f"#SBATCH --nodes={given.nodes}",
        f"#SBATCH --ntasks-per-node={given.gpus}",
        f"#SBATCH --gpus-per-node={given.gpus}",
        f"#SBATCH --time={given.hours}:00:00",
        f"#SBATCH --output={given.name}-%j.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "#SBATCH --signal=TERM@120",  # before the time is over: it saves and leaves
        *partition,
        f"cd {shlex.quote(str(ROOT))}",
        f"srun --kill-on-bad-exit=1 {trained(training)}",
        "code=$?",
        f'[ "$code" = {AGAIN} ] && exec scontrol requeue "$SLURM_JOB_ID"',
        'exit "$code"',
    ]
    return [Script("\n".join(lines) + "\n")], f"scancel --name={given.name}"


def run(commands: list[list[str]], hint: str, *, dry: bool) -> int:
    """Run them one after the other, or show them."""
    for command in commands:
        script = command if isinstance(command, Script) else None
        print(f"sbatch <<'END'\n{script}END" if script else shlex.join(command), flush=True)
        if dry:
            continue
        done = subprocess.run(["sbatch"] if script else command, input=script, text=True)
        if done.returncode:
            print(f"it ended with exit code {done.returncode}; nothing further was run", file=sys.stderr)
            return done.returncode
    print(f"# to take it away: {hint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

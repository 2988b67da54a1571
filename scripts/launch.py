"""Start a run on many hosts: a slice of TPUs, a GKE cluster or a SLURM cluster of GPUs.

    python scripts/launch.py tpu-vm --name ttrl --topology v5e:4x4 --zone us-west4-a -- --config configs/aime.py
    python scripts/launch.py gke --name ttrl --topology v5e:4x4 --cluster mine --zone us-west4-a --project mine -- \\
        --config configs/aime.py --workdir /shared/aime
    python scripts/launch.py slurm --name ttrl --nodes 2 --gpus 8 -- --config configs/aime.py

What follows -- are the arguments of `python -m ttrl_jax.train`; --workdir and --config.data.path must be where all
hosts reach them, and the same command again goes on after the last checkpoint. --dry-run prints what would be run, and
runs nothing. Nothing is ever deleted: the last line says how to do it.

tpu-vm asks for the slice (--queued: in Google Cloud's queue, and waits; --spot: one that may be taken away), puts what
is committed here on every host, installs it and starts all hosts at once. The run outlives the connection.
Needs gcloud.

gke hands a JobSet to xpk, which starts all hosts again where one was lost. Needs xpk, docker, and a cluster of xpk's.

slurm submits a job of one process for each GPU, which goes back into the queue when its time is over or a host was
lost. It is run with the Python that runs this script. Needs a checkout on a file system that all nodes share.
"""

import argparse
import math
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Of each kind of TPU: the name of a slice (for v4 and v5p it counts cores, of which a chip has two), and the software
# of its hosts. https://cloud.google.com/tpu/docs/runtimes
KINDS = {
    "v4": ("v4-{cores}", "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod-{chips}", "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p-{cores}", "v2-alpha-tpuv5"),
    "v6e": ("v6e-{chips}", "v2-alpha-tpuv6e"),
}
# Exit codes of a run that saved and can go on: another process has gone (EX_TEMPFAIL), and after SIGTERM (128 + 15).
GONE, TERMINATED = 75, 143
# A TPU host's own Python may be older than the package needs.
PREPARE = (
    'python3 -m pip install -q uv && python3 -m uv venv -q --python 3.12 && python3 -m uv pip install -q -e ".[tpu]"'
)


@dataclass
class Plan:
    """What is run, in order; and what takes it away again."""

    commands: list[list[str]]
    take_away: str
    stdin: str = field(default="")  # of the last command


def main() -> int:
    argv = sys.argv[1:]
    at = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_subparsers(dest="where", required=True)
    one = {name: where.add_parser(name) for name in ("tpu-vm", "gke", "slurm")}
    for each in one.values():
        each.add_argument("--name", required=True, help="of the job, and of what it runs on")
        each.add_argument("--dry-run", action="store_true", help="print what would be run")
    for name in ("tpu-vm", "gke"):
        one[name].add_argument("--topology", required=True, help="such as v5e:4x4, as ttrl_jax.plan takes it")
        one[name].add_argument("--zone", required=True, help="of Google Cloud")
    one["tpu-vm"].add_argument("--queued", action="store_true", help="ask in the queue, and wait")
    one["tpu-vm"].add_argument("--spot", action="store_true", help="one that may be taken away at any time")
    one["gke"].add_argument("--cluster", required=True)
    one["gke"].add_argument("--project", required=True)
    one["gke"].add_argument("--image", default="python:3.12", help="with Python 3.11 or newer; default: %(default)s")
    one["slurm"].add_argument("--nodes", type=int, required=True)
    one["slurm"].add_argument("--gpus", type=int, required=True, help="of each node")
    one["slurm"].add_argument("--partition", help="of the cluster")
    one["slurm"].add_argument("--hours", type=int, default=24, help="time limit; default: %(default)s")
    given, training = parser.parse_args(argv[:at]), argv[at + 1 :]
    if not training:
        parser.error("the arguments of the training are missing; give them after --, such as -- --config FILE.py")
    try:
        plan = {"tpu-vm": tpu_vm, "gke": gke, "slurm": slurm}[given.where](given, training)
    except ValueError as error:
        parser.error(str(error))
    return run(plan, dry=given.dry_run)


def accelerator(topology: str) -> tuple[str, str]:
    """What Google Cloud calls a slice such as v5e:4x4, and the software of its hosts. Raises ValueError."""
    kind, _, shape = topology.partition(":")
    sizes = shape.split("x")
    if kind not in KINDS or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise ValueError(f"--topology must be KIND:SHAPE, such as v5e:4x4, with a KIND of {', '.join(KINDS)}")
    chips = math.prod(map(int, sizes))
    name, version = KINDS[kind]
    return name.format(chips=chips, cores=2 * chips), version


def train(python: str, training: list[str]) -> str:
    return shlex.join([python, "-m", "ttrl_jax.train", *training])


def tpu_vm(given: argparse.Namespace, training: list[str]) -> Plan:
    kind, version = accelerator(given.topology)
    tpus, zone = ["gcloud", "compute", "tpus"], f"--zone={given.zone}"
    place = [zone, f"--accelerator-type={kind}", *(["--spot"] if given.spot else [])]
    if given.queued:
        queue = [*tpus, "queued-resources"]
        ask = [*queue, "create", given.name, f"--node-id={given.name}", f"--runtime-version={version}", *place]
        state = shlex.join([*queue, "describe", given.name, zone, "--format=value(state.state)"])
        wait = (
            f"while state=$({state}) && [ $state != ACTIVE ]; do "
            "case $state in FAILED|SUSPENDED) echo $state; exit 1;; esac; sleep 30; done"
        )
        asking = [ask, ["bash", "-c", wait]]
        take_away = shlex.join([*queue, "delete", given.name, zone, "--force"])
    else:
        asking = [[*tpus, "tpu-vm", "create", given.name, f"--version={version}", *place]]
        take_away = shlex.join([*tpus, "tpu-vm", "delete", given.name, zone])

    def everywhere(command: str) -> list[str]:
        return [*tpus, "tpu-vm", "ssh", given.name, zone, "--worker=all", f"--command={command}"]

    archive = f"{given.name}.tar.gz"
    started = f"nohup {train('.venv/bin/python', training)} > train.log 2>&1 & run=$!"
    return Plan(
        [
            *asking,
            ["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={Path.cwd() / archive}", "HEAD"],
            [*tpus, "tpu-vm", "scp", archive, f"{given.name}:{archive}", zone, "--worker=all"],
            everywhere(f"mkdir -p ttrl_jax && tar xzf {archive} -C ttrl_jax && cd ttrl_jax && {PREPARE}"),
            everywhere(f"cd ttrl_jax && {{ {started}; tail --pid=$run -n +1 -F train.log; wait $run; }}"),
        ],
        take_away,
    )


def gke(given: argparse.Namespace, training: list[str]) -> Plan:
    kind, _ = accelerator(given.topology)
    place = [f"--cluster={given.cluster}", f"--project={given.project}", f"--zone={given.zone}"]
    command = f'pip install -q -e ".[tpu]" && {train("python", training)}'
    # What it is started again after by itself are exit codes 42 and 127 to 255.
    create = [
        "xpk", "workload", "create", f"--workload={given.name}", *place, f"--tpu-type={kind}",
        "--num-slices=1", f"--base-docker-image={given.image}", f"--script-dir={ROOT}",
        "--max-restarts=100", f"--restart-on-exit-codes={GONE}", f"--command={command}",
    ]  # fmt: skip
    return Plan([create], shlex.join(["xpk", "workload", "delete", f"--workload={given.name}", *place]))


def slurm(given: argparse.Namespace, training: list[str]) -> Plan:
    settings = {
        "job-name": given.name,
        "nodes": given.nodes,
        "ntasks-per-node": given.gpus,
        "gpus-per-node": given.gpus,
        "time": f"{given.hours}:00:00",
        "output": f"{given.name}-%j.log",
        "open-mode": "append",
        "signal": "TERM@300",  # to the processes, so many seconds before the time is over: they save and leave
    }
    if given.partition:
        settings["partition"] = given.partition
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{key}={value}" for key, value in settings.items()),
        "#SBATCH --requeue",
        f"cd {shlex.quote(str(ROOT))}",
        # Where one ends, the others see it and leave by themselves, in less than so many seconds.
        f"srun --kill-on-bad-exit=0 --wait=120 {train(sys.executable, training)}",
        "code=$?",
        f"case $code in {GONE}|{TERMINATED}) exec scontrol requeue $SLURM_JOB_ID;; esac",
        "exit $code",
    ]
    return Plan([["sbatch"]], f"scancel --name={given.name}", stdin="\n".join(lines) + "\n")


def run(plan: Plan, *, dry: bool) -> int:
    """Run the commands one after the other, or only show them."""
    for command in plan.commands:
        stdin = plan.stdin if command is plan.commands[-1] else ""
        print(shlex.join(command) + (f" <<'END'\n{stdin}END" if stdin else ""), flush=True)
        if not dry:
            code = subprocess.run(command, input=stdin or None, text=True).returncode
            if code:
                print(f"it ended with exit code {code}; nothing further was run", file=sys.stderr)
                return code
    print(f"# to take it away: {plan.take_away}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

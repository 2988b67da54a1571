"""Will a run fit, and how long does a step take at best? Compiles the programs of training, without running them.

    python -m ttrl_jax.plan --config configs/aime.py:Qwen/Qwen2.5-Math-7B --topology v5e:4x4 [--config.a.b=value ...]

--topology is a TPU slice, which need not be there (it takes `pip install -e ".[tpu]"`, and a few minutes); without it
the devices of this machine are planned for. The model is looked for as training does, but a well-known hub name needs
no download: its shape is built in. No weights are read.

Bytes of a chip are XLA's own account of the very programs that training runs, at their longest: prompts and responses
up to their limits. Operations and bytes that must be moved are the model's arithmetic, the roofline the longer of the
two at the published speed of the chips: no run is faster. What remat computes again is not counted. If it does not
fit, the nearest settings that do are looked for and compiled. --json prints everything as one JSON object. Exit code 1
if nothing fits.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.experimental import topologies
from ml_collections import ConfigDict

from ttrl_jax import build, cli
from ttrl_jax.check import check
from ttrl_jax.data.problems import Problems
from ttrl_jax.errors import InputError
from ttrl_jax.model.config import read_config
from ttrl_jax.model.shapes import named
from ttrl_jax.model.sharding import make_mesh
from ttrl_jax.plan.arithmetic import CHIPS, GB, Chip, chip_bytes
from ttrl_jax.plan.programs import DoesNotCompile, Program, Setting, compiled
from ttrl_jax.plan.search import changed as with_change
from ttrl_jax.plan.search import nearest
from ttrl_jax.resolve import resolve
from ttrl_jax.source import model_source
from ttrl_jax.tasks import read_tasks

cli.define_config_flag()
flags.DEFINE_string("topology", "", "A TPU slice, such as v5e:4x4; default: the devices of this machine.")
flags.DEFINE_bool("json", False, "Print the plan as JSON.")
TRIES = 3  # settings that are compiled before the search gives up

PHASES = {"sample": ("copy", "prefill", "grow", "decode"), "score": ("score",), "update": ("gradient", "step")}


def main() -> int:
    say = _printer(flags.FLAGS.json)
    setting, why = read(flags.FLAGS.topology)
    device = setting.mesh.devices.flat[0]
    chip = CHIPS[device.device_kind] if device.device_kind in CHIPS else None
    memory = chip.memory if chip else device_memory(device)
    say(f"model     {setting.config.model.path}")
    say(f"devices   {setting.mesh.size} x {device.device_kind}, {memory / GB:.1f} GB each")
    say(f"attention {setting.model.attention}, {why}")
    plan = make(setting, memory, say)
    tried = [plan]
    if not plan["fits"]:
        say(f"it does not fit: {plan['reason']}")
        for _, change in zip(range(TRIES), nearest(setting, memory), strict=False):
            say("trying " + ", ".join(f"{key}={value}" for key, value in change.items()))
            tried.append({"change": change} | make(with_change(setting, change), memory, say))
            if tried[-1]["fits"]:
                break
    for each in tried:
        if each["programs"]:
            say(tables(each, chip, memory, steps(setting.config)))
    if not tried[-1]["fits"]:
        say("nothing like these settings fits; take more chips, a smaller model, or shorter responses")
    elif len(tried) > 1:
        say("it fits with " + " ".join(f"--config.{key}={value}" for key, value in tried[-1]["change"].items()))
    if flags.FLAGS.json:
        about = {"model": setting.config.model.path, "device": device.device_kind, "devices": setting.mesh.size}
        told = {"attention": setting.model.attention, "jax": jax.__version__, "memory": memory}
        print(json.dumps(about | told | {"total_steps": steps(setting.config), "plans": tried}))
    return 0 if tried[-1]["fits"] else 1


def _printer(quiet: bool) -> Any:
    return lambda line: print(line, file=sys.stderr if quiet else sys.stdout, flush=True)


def read(topology: str) -> tuple[Setting, str]:
    """What the flags ask for, every value set, and why rows are attended to as they are."""
    config = cli.config()
    check(config)
    path = config.model.path
    model = None if Path(path).expanduser().exists() else named(path)
    model = model or read_config(model_source(path))
    config, _ = resolve(config, template=None, max_positions=model.max_positions)
    sizes = dict(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    mesh = make_mesh(**sizes, devices=devices(topology))
    model, why = build.with_kernel(config, model, mesh)
    return Setting(ConfigDict(config.as_configdict()), model, mesh), why


def devices(topology: str) -> list[jax.Device]:
    """Those of a TPU slice, or of this machine. Raises InputError for a slice that there is not."""
    if not topology:
        return jax.devices()
    # There is no metadata server to ask for a TPU, and nothing runs on one that two processes could quarrel about.
    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")):
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # of what is not compiled for the slice
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--topology={topology} cannot be planned for ({reason}); expected a slice such as v5e:4x4, v6e:4x4 or "
            'v5p:2x2x2, and the extra .[tpu] installed: pip install -e ".[tpu]"'
        ) from error


def device_memory(device: jax.Device) -> float:
    """Bytes of a device here: what it says itself; a CPU's share of the machine's memory."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()


def steps(config: ConfigDict) -> int | None:
    """Training steps of the whole run; None where the questions are not here."""
    if not (config.data.path.startswith("builtin:") or Path(config.data.path).is_file()):
        return None
    items = read_tasks(config)[0].items
    return config.episodes * Problems(items, batch=config.rollout.prompts, seed=config.seed).steps_per_episode


def make(setting: Setting, memory: float, say: Any) -> dict[str, Any]:
    """Compile everything for one setting."""
    programs: list[Program] = []
    reason = None
    try:
        for program in compiled(setting, say):
            programs.append(program)
            if program.together > memory and reason is None:
                reason = f"{program.name} needs {program.together / GB:.1f} GB of a chip that has {memory / GB:.1f}"
    except DoesNotCompile as error:
        reason = str(error)
    layout = setting.layout()
    parts = {
        "weights": chip_bytes(layout.params),
        "optimizer": chip_bytes(layout.optimizer),
        "copy of the start": chip_bytes(setting.frozen(layout)),
    }
    return {
        "mesh": dict(setting.mesh.shape),
        "rollout.rows": setting.config.rollout.rows,
        "train.micro_tokens": setting.config.train.micro_tokens,
        "fits": reason is None,
        "reason": reason,
        "state": parts,
        "programs": [program.as_dict() for program in programs],
    }


def tables(plan: dict[str, Any], chip: Chip | None, memory: float, total_steps: int | None) -> str:
    """The plan as text: bytes of a chip, then the phases of a step."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    settings = ", ".join(f"{key}={plan[key]}" for key in ("rollout.rows", "train.micro_tokens"))
    lines = [f"\nmesh {mesh}, {settings}; GB of a chip", ""]
    lines += [f"  {name:28}{size / GB:8.2f}" for name, size in plan["state"].items()]
    largest = max(plan["programs"], key=lambda program: program["together"])
    rest = {f"activations ({largest['name']})": largest["temporaries"]}
    rest["weights that sample, cache" if largest["name"] in PHASES["sample"] else "sums of the gradient"] = (
        largest["together"] - largest["temporaries"] - sum(plan["state"].values())
    )
    rest[f"at most at once ({largest['name']})"] = largest["together"]
    rest["spare"] = memory - largest["together"]
    lines += [f"  {name:28}{size / GB:8.2f}" for name, size in rest.items()]
    lines += ["", f"  {'program':12}{'at once':>9}{'FLOP':>11}{'bytes':>11}{'roofline':>14}"]
    times = {}
    for program in plan["programs"]:
        roof = roofline(program, chip, plan["mesh"])
        times[program["name"]] = roof
        shown = "" if roof is None else f"{roof:.3g} s"
        lines.append(
            f"  {program['name']:12}{program['together'] / GB:9.2f}{program['flops']:11.3g}{program['moved']:11.3g}"
            f"{shown:>14}"
        )
    if chip:
        step = sum(times.values())
        run = "" if total_steps is None else f", the run's {total_steps} steps {step * total_steps / 3600:.1f} hours"
        lines += ["", f"  a step takes at least {step:.1f} s{run}, at the published speed of the chips"]
    return "\n".join(lines)


def roofline(program: dict[str, Any], chip: Chip | None, mesh: dict[str, int]) -> float | None:
    """Seconds that a step spends in the program at best; None for chips whose speed is not known."""
    if chip is None:
        return None
    chips = mesh["data"] * mesh["fsdp"] * mesh["tensor"]
    return max(program["flops"] / chip.flops, program["moved"] / chip.bandwidth) / chips


if __name__ == "__main__":
    sys.exit(cli.run(main, doc=__doc__))

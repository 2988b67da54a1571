"""Will a run fit, and how long does a step take at best? Compiles the programs of training, without running them.

    python -m ttrl_jax.plan --config configs/aime.py:Qwen/Qwen2.5-Math-7B --topology v5e:4x4 [--config.a.b=value ...]

--topology is a slice of TPU v5e, v5p or v6e, or some NVIDIA GPUs: h100, h200, a100-80 or l40s, or h100:8 for 8 of them.
They need not be there: it takes their compiler (`pip install -e ".[tpu]"`, or `".[cuda13]"` with Python 3.12 or newer)
and a few minutes. Without it the devices of this machine are planned for. The model is looked for as training does, but
a well-known hub name needs no download: its shape is built in. No weights are read. --questions says how many questions
there are (30, or 30,43 with one set in eval.tasks) where they are not on this machine; nothing is downloaded.

Bytes of a chip are XLA's own account of the very programs that training runs, at their longest: prompts and responses
up to their limits. Operations (FLOP) and bytes from and to memory are the model's arithmetic, padding and idle slots
included; the roofline is the longer of the two at the published speed of the chips, so that no run is faster. JAX takes
75 % of a GPU's memory unless XLA_CLIENT_MEM_FRACTION says otherwise: the plan says where that must be set. If it
does not fit, the nearest settings that should are looked for, and compiled. If it does, the plan says whether the
update fits with less computed again (train.remat) too. --json prints everything as one JSON object. Exit code 1 if
nothing fits.
"""

from ttrl_jax import commands

if __name__ == "__main__":  # before the other imports, which take seconds
    ARGUMENTS = commands.begin(commands.PLAN, doc=__doc__)

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import FrozenConfigDict

from ttrl_jax import cli
from ttrl_jax.check import check
from ttrl_jax.data import prompts as text
from ttrl_jax.data import stops
from ttrl_jax.data.problems import BUILTIN, steps_of
from ttrl_jax.errors import InputError
from ttrl_jax.inputs import with_adapter
from ttrl_jax.model import weights
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.shapes import named
from ttrl_jax.model.sharding import make_mesh, require_fit, require_fit_of_batch
from ttrl_jax.plan.chips import FRACTION, GB, Chip, Memory, chip_of, memory_of, verdict
from ttrl_jax.plan.programs import Compiler, DoesNotCompile, Say, Setting
from ttrl_jax.plan.search import changed, estimates, found, nearest
from ttrl_jax.plan.slices import devices
from ttrl_jax.plan.tables import table
from ttrl_jax.programs import check_length, with_kernel, with_lora
from ttrl_jax.resolve import agree, agree_with_data, resolve
from ttrl_jax.rollout.slots import SHARING
from ttrl_jax.source import model_source, tokenizer_of
from ttrl_jax.tasks.sets import read_questions

TRIES = 3  # settings that are compiled before the search gives up


def main() -> int:
    quiet = flags.FLAGS.json
    say = lambda line: print(line, file=sys.stderr if quiet else sys.stdout, flush=True)  # noqa: E731
    setting = read(flags.FLAGS.topology)
    device = setting.mesh.devices.flat[0]
    chip, memory = chip_of(device), memory_of(device, there=not flags.FLAGS.topology)
    say(f"model     {setting.config.model.path}")
    say(f"devices   {setting.mesh.size} x {device.device_kind}, {memory.whole / GB:.1f} GB each")
    say(f"attention {setting.model.attention}, over the cache {setting.model.decode_attention}")
    if not setting.known:
        say(
            f"the questions are not here: evaluations are planned for {setting.questions[0]} of them, as many as are "
            "sampled at once; --questions=N says how many there are"
        )
    plans = search(setting, chip, memory, say)
    fits = plans[-1]["fits"]
    if not fits:
        say("nothing like these settings fits; take more chips, a smaller model, or shorter responses")
    elif len(plans) > 1:
        say("it fits with " + settings_of(plans[-1]["change"]))
    if quiet:
        told = {"model": setting.config.model.path, "device": device.device_kind, "devices": setting.mesh.size}
        told |= {"memory": memory.whole, "share": memory.share}
        told |= {"attention": setting.model.attention, "decode_attention": setting.model.decode_attention}
        told |= {"jax": jax.__version__}
        print(
            json.dumps(told | {"questions": setting.questions if setting.known else None, "fits": fits, "plans": plans})
        )
    return 0 if fits else 1


def settings_of(change: dict[str, int]) -> str:
    return " ".join(f"--config.{key}={value}" for key, value in change.items())


# ---------------------------------------------------------------------- what is planned for


def read(topology: str) -> Setting:
    """What the flags ask for. Where the questions are not known, as many as are sampled at once."""
    given = commands.given()
    config, _ = agree(commands.config(), given=given)
    check(config)
    config, model, stop_ids = resolved(config)
    questions = number_of_questions(config, flags.FLAGS.questions)
    if questions is not None:
        config, _ = agree_with_data(config, questions=questions[0], given=given)
    return setting_of(config, model, devices(topology), questions, stop_ids)


def resolved(config: FrozenConfigDict) -> tuple[FrozenConfigDict, ModelConfig, tuple[int, ...]]:
    """The config with every value set, the model's shape, and what ends a response.

    Of a well-known name that is no folder here only the shape is known. That will do: how the model is asked changes
    no program's size, and which token ends a response does not either.
    """
    path = config.model.path
    model, template, stop_ids = named(path), None, (0,)
    if model is None or Path(path).expanduser().exists():
        source = model_source(path)
        model = weights.read_model(source)
        tokenizer, ends = tokenizer_of(source)
        template = text.chat_template(tokenizer)
        turn = config.rollout.end_of_turn and config.prompt.chat_template
        stop_ids = tuple(stops.of_run(tokenizer, ends, end_of_turn=turn, texts=config.rollout.stop))
    if config.model.adapter:
        config, *_ = with_adapter(config, model)
    config, _ = resolve(config, template=template, max_positions=model.max_positions)
    check_length(config, model)
    return config, with_lora(config, model), stop_ids


def setting_of(
    config: FrozenConfigDict,
    model: ModelConfig,
    devices: Sequence[jax.Device],
    questions: tuple[int, ...] | None,
    stop_ids: tuple[int, ...],
) -> Setting:
    """What is planned for. questions: None if they are not known."""
    most = max(1, config.rollout.rows // min(config.eval.samples, SHARING))
    mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor, devices=devices)
    require_fit(mesh, heads=model.heads)
    require_fit_of_batch(mesh, prompts=config.rollout.prompts)
    model, _ = with_kernel(config, model, mesh)
    return Setting(config, model, mesh, questions or (most,), questions is not None, stop_ids)


def number_of_questions(config: FrozenConfigDict, given: list[str]) -> tuple[int, ...] | None:
    """The number of questions of the data, and of each of eval.tasks. None if they are neither given nor on this
    machine. Raises InputError."""
    if given:
        sets = 1 + len(config.eval.tasks)
        if len(given) != sets or not all(number.isdigit() and int(number) > 0 for number in given):
            raise InputError(
                f"--questions must be {sets} whole number{'s' if sets > 1 else ''}, of the data"
                f"{' and of each set in eval.tasks' if sets > 1 else ''}, got {','.join(given)!r}"
            )
        questions = tuple(map(int, given))
    else:
        paths = [config.data.path] + [entry.partition("=")[2] for entry in config.eval.tasks]
        if not all(path.startswith(BUILTIN) or Path(path).expanduser().is_file() for path in paths):
            return None
        questions = tuple(len(each.items) for each in read_questions(config))
    return questions


# ---------------------------------------------------------------------- the plan


def search(setting: Setting, chip: Chip | None, memory: Memory, say: Say) -> list[dict[str, Any]]:
    """The plan of a setting, and where it does not fit those of others, until one does."""
    plans, factors, other, change = [], {}, setting, {}
    while True:
        compiler = Compiler(other, say)
        plans.append({"change": change} | plan_of(compiler, chip, memory, say))
        if plans[-1]["fits"] and other.config.train.remat == "full":
            plans[-1]["remat"] = computed_once(other, plans[-1]["seconds"], chip, memory, say)
        if plans[-1]["fits"] or len(plans) > TRIES:
            return plans
        factors = found(other, compiler.programs, factors)
        tried = [plan["change"] for plan in plans]
        change = next((change for change in nearest(setting, memory.most, factors) if change not in tried), None)
        if change is None:
            return plans
        say("it should fit with " + settings_of(change))
        other = changed(setting, change)


def plan_of(compiler: Compiler, chip: Chip | None, memory: Memory, say: Say) -> dict[str, Any]:
    """Compile everything for one setting, print its table and a verdict, and return what is known as JSON has it."""
    setting, reason, began = compiler.setting, None, time.perf_counter()
    try:
        compiler.all()
    except DoesNotCompile as error:
        reason = str(error)
    took = time.perf_counter() - began
    seconds = seconds_of(compiler, chip) if chip is not None and reason is None else None
    largest = max(compiler.programs, key=lambda program: program.together, default=None)
    said = f"it does not fit: {reason}" if reason else verdict(largest.label, largest.together, memory)
    if reason is None and largest.together > memory.most:
        reason = f"{largest.label} needs {largest.together / GB:.2f} GB of {memory.whole / GB:.2f}"
    share = memory.fraction(largest.together) if reason is None else None
    plan = {"mesh": dict(setting.mesh.shape), **compiler.sizes(), "fits": reason is None, "verdict": said}
    guesses = {name: one.state + one.more for name, one in estimates(setting).items()}  # bytes
    plan |= {"estimates": guesses, "reason": reason, "environment": {} if share is None else {FRACTION: share}}
    plan |= {"programs": [program.as_dict() for program in compiler.programs]}
    plan |= {"programs_of_run": compiler.of_run(), "compile_s": round(took, 1)}
    plan |= {"seconds": seconds, "run": run_of(setting, seconds) if setting.known else None}
    if compiler.programs:
        say(table(plan, memory))
    say(said)
    return plan


def computed_once(
    setting: Setting, before: dict[str, float] | None, chip: Chip | None, memory: Memory, say: Say
) -> dict[str, Any] | None:
    """What of train.remat, less than "full", the update fits with too, the fastest; None where nothing does. before:
    the seconds of the plan with "full"."""
    for remat in ("none", "dots"):
        compiler = Compiler(changed(setting, {"train.remat": remat}), say)
        try:
            with jax.set_mesh(setting.mesh):
                for name in compiler.learners:
                    compiler.learning(name)
        except DoesNotCompile:
            continue
        largest = max(compiler.programs, key=lambda program: program.together)
        if largest.together > memory.most:
            continue
        said = f"--config.train.remat={remat} fits too: {largest.label} needs {largest.together / GB:.2f} GB"
        seconds = None if chip is None or before is None else seconds_of(compiler, chip)["update"]
        if seconds is not None:
            said += f", and the update takes {seconds:.3g} s in place of {before['update']:.3g}"
        say(said)
        return {"train.remat": remat, "together": largest.together, "seconds": seconds}
    return None


def seconds_of(compiler: Compiler, chip: Chip) -> dict[str, float]:
    """The roofline of each phase, of a whole step, and of an evaluation."""
    found: dict[str, float] = {}
    for program in compiler.programs:
        seconds = program.work.seconds(chip, compiler.setting.mesh.size)
        found[program.phase] = found.setdefault(program.phase, 0.0) + seconds
    return found | {"step": sum(found[phase] for phase in ("sample", "score", "update") if phase in found)}


def run_of(setting: Setting, seconds: dict[str, float] | None) -> dict[str, float | None]:
    """Steps and evaluations of the whole run; where the speed of the chips is known, also its hours."""
    config = setting.config
    steps = config.episodes * steps_of(setting.questions[0], config.rollout.prompts, drop_last=config.data.drop_last)
    before = len(range(0, steps, config.eval.every)) if config.eval.every else min(steps, 1)
    run = {"steps": steps, "evaluations": before + 1, "hours": None, "chip_hours": None}
    if seconds is None:
        return run
    once = seconds["label"] if "label" in seconds else 0.0
    evaluation = seconds["evaluate"]
    hours = (once + steps * seconds["step"] + (before + 1) * evaluation) / 3600
    return run | {"hours": hours, "chip_hours": hours * setting.mesh.size}


if __name__ == "__main__":
    cli.leave(cli.run(main, commands.PLAN, arguments=ARGUMENTS))

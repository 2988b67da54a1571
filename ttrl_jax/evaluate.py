"""Evaluate a model, or what a run made of it: many responses to each question, and how many are right.

    python -m ttrl_jax.evaluate --config configs/quickstart.py [--checkpoint runs/quickstart] [--step N] [--out DIR]

Results go to --out, by default RUN/eval/<config>-step<n>-seed<n>, or evals/<config>-<model>-seed<n> without a run.

--checkpoint is a run folder, one of its checkpoints (RUN/checkpoints/STEP), or a model folder; without it, the config's
model.path is evaluated. --step says which checkpoint of a run folder: after N steps, last, or chosen without truths. By
default it is the last, unless the run has a certificate that returns the start. The model that a run began with is
found where the run had it; --model says where it has been moved to. The questions are the config's own and those of
eval.tasks. With the run's config, seed and devices, the numbers of its last checkpoint are those that the run itself
wrote down.
"""

from ttrl_jax import commands

if __name__ == "__main__":  # before the other imports, which take seconds
    ARGUMENTS = commands.begin(commands.EVALUATE, doc=__doc__)

import dataclasses
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict

from ttrl_jax import cli
from ttrl_jax.errors import InputError
from ttrl_jax.inputs import Inputs, facts, identity, introduce, read_inputs
from ttrl_jax.measure.evaluation import measure, task_keys
from ttrl_jax.measure.tables import headline, table
from ttrl_jax.model import weights
from ttrl_jax.prepare import prepare
from ttrl_jax.run import choice, distributed, folder, places
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.run.files import MOST_UNDECIDED, UNDECIDED
from ttrl_jax.run.metrics import write_json, write_jsonl
from ttrl_jax.run.progress import Progress
from ttrl_jax.session import open_session, restore
from ttrl_jax.source import model_of_run

RESULTS, GENERATIONS = "results.json", "generations.jsonl"


@dataclass(frozen=True)
class Origin:
    """Where the parameters come from: a checkpoint of a run, or a model as it is."""

    model: str  # folder or hub name: config, tokenizer, and the weights if there is no run
    run: Path | None
    step: int | None  # of the checkpoint; None without a run
    lora: dict[str, Any] | None = None  # the run's keys of this section
    adapter: str = ""  # the model.adapter that it began with


def main() -> int:
    began = time.monotonic()

    # ------------------------------------------------------------- the other processes: all run these same lines
    cli.join_processes()

    # ------------------------------------------------------------- inputs: all checked before anything is written
    origin, inputs = distributed.together(find_inputs)
    config = inputs.config
    run = identity(inputs)
    run = dataclasses.replace(run, config=run.config | {"evaluated": checkpoint_of(origin) or folder.AS_IS})
    out = distributed.together(lambda: out_folder(origin, config))
    distributed.require_same(facts(inputs, run))
    distributed.together(lambda: folder.require_same(out, run, defaults=commands.defaults(), flag="--out"))
    distributed.together(lambda: distributed.leader() and places.require_writable(out, flag="--out"))

    # ------------------------------------------------------------- model, then one set of questions after the other
    found, rows, undecided = {}, [], []
    with Progress(len(inputs.sets), title="evaluated", compiles=config.log.compiles) as progress:
        session = open_session(inputs, say=progress.line, compiling=progress.compiling, begin=origin.run is None)
        if origin.run is not None and origin.step is not None:
            with Checkpoints(origin.run / folder.CHECKPOINTS, keep=None) as checkpoints:
                session = restore(session, checkpoints, origin.step)
        introduce(inputs, progress.line)
        prepare(session, say=progress.line)
        beside = f" with the adapters of {config.model.adapter}" if config.model.adapter else ""
        told = f"{origin.model}{beside}" if origin.run is None else f"{origin.run}, after step {origin.step}"
        progress.line(f"weights   {told}")
        progress.line(f"samples   {sampled(config)}")
        for i, (questions, key) in enumerate(zip(inputs.sets, task_keys(session), strict=True)):
            result = measure(session, questions, key, progress=progress.tokens(f"evaluating {questions.name}"))
            found[questions.name] = result.numbers
            rows += [{"task": questions.name} | row for row in result.rows()] if distributed.leader() else []
            undecided += [{"task": questions.name, "step": origin.step} | row for row in result.undecided]
            shown = headline(result.numbers, samples=config.eval.samples)
            progress.step(i + 1, f"{questions.name}: {shown}")

    # ------------------------------------------------------------- results
    params_sha256 = weights.sha256(session.state.policy.params)
    results = {
        "model": origin.model,
        "checkpoint": checkpoint_of(origin),
        "params_sha256": params_sha256,
        "seed": config.seed,
        "samples": config.eval.samples,
        "seconds": round(time.monotonic() - began, 1),
        "results": found,
    }
    print(table(found, samples=config.eval.samples, extra_k=config.eval.k))

    def write() -> None:
        folder.claim(out, run)
        folder.renew(out, run, (), step=0)
        write_jsonl(out / GENERATIONS, rows)
        write_jsonl(out / UNDECIDED, undecided[:MOST_UNDECIDED])
        write_json(out / RESULTS, results)

    distributed.alone(write)
    distributed.together(lambda: None)  # where all learn of what could not be written
    print(f"wrote {RESULTS}, {GENERATIONS}, {UNDECIDED} and {folder.CONFIG} (the settings) to {out}")
    return 0


def find_inputs() -> tuple[Origin, Inputs]:
    """What the flags ask for, checked. Raises InputError."""
    config = commands.config()
    origin = find_origin(flags.FLAGS.checkpoint, config.model.path)
    given = commands.given()
    _require_lora_of_run(config, origin, given=given)
    inputs = read_inputs(with_model(config, origin, given=given), training=False, given=given)
    if origin.run is not None:
        folder.require_same_model(origin.run, identity(inputs).model, flag="--checkpoint")
    return origin, inputs


def find_origin(checkpoint: str, model_path: str) -> Origin:
    """What --checkpoint names, or else model.path. Raises InputError if it is nothing that can be evaluated."""
    path = places.run_folder(checkpoint, flag="--checkpoint") if checkpoint else None
    run_and_step = folder.find_run(path) if path else None
    if flags.FLAGS.model and run_and_step is None:
        raise InputError("--model says where the model of a run lies now; add --checkpoint RUN, or set model.path")
    given = flags.FLAGS.step
    if given is not None and (run_and_step is None or run_and_step[1] is not None):
        raise InputError(
            f"--step={given} is a choice among the checkpoints of a run; add --checkpoint RUN, a run folder"
        )
    if path is None:
        return Origin(model_path, None, None)
    if run_and_step is None:
        if not path.exists():
            raise InputError(f"--checkpoint {path} does not exist; give a run folder, RUN/checkpoints/STEP or a model")
        return Origin(str(path), None, None)
    run, step = run_and_step
    made = folder.made_with(run, flag="--checkpoint")
    model = model_of_run(run, made.config["model"]["path"], recorded=made.model_path, given=flags.FLAGS.model)
    with Checkpoints(run / folder.CHECKPOINTS, keep=None) as checkpoints:
        if step is None:
            step = choice.asked(run, checkpoints, given)
        if step is None:
            raise InputError(f"{run} has no checkpoint yet; wait for its first episode to end")
        checkpoints.meta(step)  # raises if there is none
    lora, adapter = made.config.get("lora", {"rank": 0}), made.config["model"].get("adapter", "")
    return Origin(model, places.absolute(run), step, lora, adapter)


def checkpoint_of(origin: Origin) -> dict[str, Any] | None:
    return None if origin.run is None else {"run": str(origin.run), "step": origin.step}


def with_model(config: FrozenConfigDict, origin: Origin, *, given: Collection[str]) -> FrozenConfigDict:
    """The config with the model of `origin`, and the adapters that its run has trained, on weights that are held as
    there unless lora.base is `given`; without a run and model.adapter there are none to measure."""
    changed = ConfigDict(config)
    changed.model.path = origin.model
    if origin.lora is not None:
        changed.model.adapter = ""
        for key, value in origin.lora.items():
            if f"lora.{key}" not in given or key != "base":
                changed.lora[key] = tuple(value) if key == "targets" else value
    elif not config.model.adapter:
        changed.lora.rank = 0
    if not changed.lora.rank and not changed.model.adapter:
        changed.lora.base = "dtype"
    return FrozenConfigDict(changed)


def _require_lora_of_run(config: FrozenConfigDict, origin: Origin, *, given: Collection[str]) -> None:
    """Raise InputError if the command line asks for other adapters than those of the run."""
    if origin.lora is None:
        return
    own = {f"lora.{key}": value for key, value in origin.lora.items()} | {"model.adapter": origin.adapter}
    for key in ("lora.rank", "lora.alpha", "lora.targets", "model.adapter"):
        section, leaf = key.split(".")
        asked = config[section][leaf]
        asked, has = (list(x) if isinstance(x, tuple | list) else x for x in (asked, own.get(key)))
        if key in given and asked != has:
            raise InputError(
                f"{key}={asked!r}, and {origin.run} has {has!r}: its adapters are evaluated; leave {key} out"
            )


def out_folder(origin: Origin, config: FrozenConfigDict) -> Path:
    """What --out names, or else a folder by itself. Raises InputError."""
    return places.run_folder(flags.FLAGS.out, flag="--out") if flags.FLAGS.out else default_out(origin, config)


def default_out(origin: Origin, config: FrozenConfigDict) -> Path:
    """A folder of its own for each config, checkpoint or model, and seed."""
    if origin.run is None:
        beside = f"+{Path(config.model.adapter).absolute().name}" if config.model.adapter else ""
        name = f"{commands.config_name()}-{Path(origin.model).absolute().name}{beside}"
        return Path("evals") / f"{name}-seed{config.seed}"
    return origin.run / "eval" / f"{commands.config_name()}-step{origin.step}-seed{config.seed}"


def sampled(config: FrozenConfigDict) -> str:
    """One line on how responses are drawn."""
    ev = config.eval
    return (
        f"{ev.samples} to each question, temperature {ev.temperature}, top_p {ev.top_p}, top_k {ev.top_k}, at most "
        f"{config.rollout.max_tokens} tokens, seed {config.seed}" + (", and one greedy" if ev.greedy else "")
    )


if __name__ == "__main__":
    cli.leave(cli.run(main, commands.EVALUATE, arguments=ARGUMENTS))

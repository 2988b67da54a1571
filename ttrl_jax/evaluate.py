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
from pathlib import Path

from absl import flags
from ml_collections import FrozenConfigDict

from ttrl_jax import cli
from ttrl_jax.check import measured_samples
from ttrl_jax.inputs import Inputs, facts, identity, introduce, read_inputs
from ttrl_jax.measure.evaluation import measure, task_keys
from ttrl_jax.measure.tables import headline, table
from ttrl_jax.model import weights
from ttrl_jax.origin import Origin, checkpoint_of, find_origin, with_model
from ttrl_jax.prepare import prepare
from ttrl_jax.run import distributed, folder, places
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.run.files import MOST_UNDECIDED, UNDECIDED
from ttrl_jax.run.metrics import write_json, write_jsonl
from ttrl_jax.run.progress import Progress
from ttrl_jax.session import open_session, restore

RESULTS, GENERATIONS = "results.json", "generations.jsonl"


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
    measured = measured_samples(config.eval.samples, config.eval.stop_votes)
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
            shown = headline(result.numbers, samples=measured)
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
    print(table(found, samples=measured, extra_k=config.eval.k))

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
    origin = find_origin(flags.FLAGS.checkpoint, config.model.path, moved=flags.FLAGS.model, step=flags.FLAGS.step)
    given = commands.given()
    inputs = read_inputs(with_model(config, origin, given=given), training=False, given=given)
    if origin.run is not None:
        folder.require_same_model(origin.run, identity(inputs).model, flag="--checkpoint")
    return origin, inputs


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
    most = "at most " if ev.stop_votes else ""
    return (
        f"{most}{ev.samples} to each question, temperature {ev.temperature}, top_p {ev.top_p}, top_k {ev.top_k}, at "
        f"most {config.rollout.max_tokens} tokens, seed {config.seed}" + (", and one greedy" if ev.greedy else "")
    )


if __name__ == "__main__":
    cli.leave(cli.run(main, commands.EVALUATE, arguments=ARGUMENTS))

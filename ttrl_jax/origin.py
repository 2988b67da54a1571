"""Where the parameters come from that answer: from a checkpoint of a run, or from a model as it is."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from ttrl_jax.errors import InputError
from ttrl_jax.run import choice, folder, places
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.source import model_of_run


@dataclass(frozen=True)
class Origin:
    """Where the parameters come from: a checkpoint of a run, or a model as it is."""

    model: str  # folder or hub name: config, tokenizer, and the weights if there is no run
    run: Path | None
    step: int | None  # of the checkpoint; None without a run
    lora: dict[str, Any] | None = None  # the run's keys of this section
    adapter: str = ""  # the model.adapter that it began with


def find_origin(checkpoint: str, model_path: str, *, moved: str, step: str | None) -> Origin:
    """What --checkpoint names, or else model.path. moved: where the model of a run lies now, if it has been moved.
    step: which checkpoint of a run folder, as --step says it. Raises InputError if it is nothing that can answer."""
    path = places.run_folder(checkpoint, flag="--checkpoint") if checkpoint else None
    run_and_step = folder.find_run(path) if path else None
    if moved and run_and_step is None:
        raise InputError("--model says where the model of a run lies now; add --checkpoint RUN, or set model.path")
    if step is not None and (run_and_step is None or run_and_step[1] is not None):
        raise InputError(
            f"--step={step} is a choice among the checkpoints of a run; add --checkpoint RUN, a run folder"
        )
    if path is None:
        return Origin(model_path, None, None)
    if run_and_step is None:
        if not path.exists():
            raise InputError(f"--checkpoint {path} does not exist; give a run folder, RUN/checkpoints/STEP or a model")
        return Origin(str(path), None, None)
    run, taken = run_and_step
    made = folder.made_with(run, flag="--checkpoint")
    model = model_of_run(run, made.config["model"]["path"], recorded=made.model_path, given=moved)
    with Checkpoints(run / folder.CHECKPOINTS, keep=None) as checkpoints:
        taken = choice.asked(run, checkpoints, step) if taken is None else taken
        if taken is None:
            raise InputError(f"{run} has no checkpoint yet; wait for its first episode to end")
        checkpoints.meta(taken)  # raises if there is none
    lora, adapter = made.config.get("lora", {"rank": 0}), made.config["model"].get("adapter", "")
    return Origin(model, places.absolute(run), taken, lora, adapter)


def checkpoint_of(origin: Origin) -> dict[str, Any] | None:
    return None if origin.run is None else {"run": str(origin.run), "step": origin.step}


def with_model(config: FrozenConfigDict, origin: Origin, *, given: Collection[str]) -> FrozenConfigDict:
    """The config with the model of `origin`, and the adapters that its run has trained, on weights that are held as
    there unless lora.base is `given`; without a run and model.adapter there are none to measure. Raises InputError if
    the command line asks for other adapters than those of the run."""
    _require_lora_of_run(config, origin, given=given)
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

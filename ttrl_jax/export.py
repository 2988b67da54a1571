"""Write what a run has trained as a Hugging Face folder, for transformers and whatever else reads these.

    python -m ttrl_jax.export RUN --out DIR [--step N|last|chosen] [--dtype float32|bfloat16] [--model DIR] [--adapter]

RUN is a run folder, DIR a new or empty one: weights as safetensors, config, tokenizer, and a model card with the run's
numbers. --step says which checkpoint: after N steps, last, or chosen without truths; by default it is the last, unless
the run has a certificate that returns the start. The model that the run began with is found where the run had it;
--model says where it has been moved to. What a run with LoRA has trained is merged into the model's weights, or, with
--adapter, written as PEFT's folder.
"""

from ttrl_jax import commands

if __name__ == "__main__":  # before the other imports, which take seconds
    ARGUMENTS = commands.begin(commands.EXPORT, doc=__doc__)

import dataclasses
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from ttrl_jax import cli, huggingface
from ttrl_jax.card import card
from ttrl_jax.errors import InputError
from ttrl_jax.learn.layout import params_layout
from ttrl_jax.measure import canary
from ttrl_jax.model import decoder, lora, peft, weights
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.shapes import parameter_count
from ttrl_jax.model.sharding import make_mesh
from ttrl_jax.programs import with_lora
from ttrl_jax.records import POLICY
from ttrl_jax.run import choice, distributed, folder, places
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.source import is_local, model_of_run, model_source, text_fingerprint
from ttrl_jax.tasks.sets import OWN

_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run's model at one checkpoint."""

    config: dict[str, Any]  # of the run
    source: Path  # of the model that the run began with
    hub: str | None  # its name on the hub, if it came from there
    model: ModelConfig
    step: int
    evaluations: list[dict[str, Any]]  # until then, the first one before any step
    params: decoder.Params | lora.Adapters
    certificate: str  # what canaries say of this checkpoint, or that nothing does


def main(run: str) -> int:
    dtype = flags.FLAGS.dtype
    if not flags.FLAGS.out:
        raise InputError("--out is missing; give a new folder for the model")
    if dtype not in _DTYPES:
        raise InputError(f"--dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    if flags.FLAGS.adapter and dtype != "float32":
        raise InputError(f"--adapter writes float32, got --dtype={dtype}; leave --dtype out")
    where, out = places.run_folder(run, flag="RUN"), places.local(flags.FLAGS.out, flag="--out")
    itemsize = huggingface.DTYPES[dtype].itemsize
    distributed.devices()
    trained = restore(where, flags.FLAGS.step, moved=flags.FLAGS.model, out=out, itemsize=itemsize)
    if not flags.FLAGS.adapter:
        write(trained, out, dtype=dtype, shard_bytes=huggingface.SHARD_BYTES)
        print(f"{run} after {trained.step} steps is in {out}, as {dtype}")
        return 0
    if trained.model.lora is None:
        raise InputError(f"{run} has no adapters, it trained all weights (lora.rank=0); leave --adapter out")
    write_adapter(trained, out)
    print(f"the adapters of {run} after {trained.step} steps are in {out}")
    return 0


def restore(run: Path, given: str | None, *, moved: str, out: Path, itemsize: int) -> Trained:
    """Read a run's parameters from the checkpoint that --step asks for (`choice.asked`), once all else is known to be
    there.

    moved: where the model that the run began with is now; "" if it has not been moved.

    Raises InputError if the run, a checkpoint, the model it began with, or room for `out` is missing.
    """
    made = folder.made_with(run, flag="RUN")
    huggingface.check_out(out)
    try:
        path = model_of_run(run, made.config["model"]["path"], recorded=made.model_path, given=moved)
        source = model_source(path, key="--model" if moved else "model.path")
        model = with_lora(run_config(made), weights.read_model(source))
    except (InputError, OSError) as error:
        raise InputError(f"the model that {run} began with is needed for its config and tokenizer: {error}") from error
    fingerprints = {"fingerprint": weights.fingerprint(source), "tokenizer": text_fingerprint(source)}
    folder.require_same_model(run, fingerprints, flag="RUN")
    huggingface.check_room(out, itemsize * parameter_count(model))
    mesh = make_mesh(data=1, fsdp=-1, tensor=1)
    layout = params_layout(model, mesh)
    with Checkpoints(run / "checkpoints", keep=None) as checkpoints:
        step = choice.asked(run, checkpoints, given)
        if step is None:
            raise InputError(f"{run} has no checkpoint yet; train until it has saved one")
        evaluations = checkpoints.meta(step)["evaluations"]
        params = checkpoints.restore_part(step, f"models.{POLICY}.params", layout)
    summary = folder.read_summary(run)
    if summary is not None and summary["steps"] == step:
        ends = {
            name.removesuffix("after").removesuffix("_"): x for name, x in summary.items() if name.endswith("after")
        }
        last = {"step": step} | {name or OWN: numbers for name, numbers in ends.items()}
        evaluations = [*(each for each in evaluations if each["step"] != step), last]
    hub = None if made.model_path or moved or is_local(path) else path
    return Trained(made.config, source, hub, model, step, evaluations, params, _certificate(run, step))


def _certificate(run: Path, step: int) -> str:
    """What the run's canaries say of a checkpoint."""
    found = canary.outcome(run, step=step)
    if found is None and (run / canary.FILE).is_file():
        return "certificate: none of this checkpoint, as the canaries were asked after another one"
    return canary.sentence(found)


def run_config(made: folder.Identity) -> ConfigDict:
    """The config of a run as it was resolved, which may lack keys of today."""
    return ConfigDict({"lora": {"rank": 0}} | made.config)


def write(trained: Trained, out: Path, *, dtype: str, shard_bytes: int) -> None:
    """Write the Hugging Face folder `out`. It appears under its name only when it is complete. Adapters are added to
    the weights in float32, which are rounded once."""
    if trained.model.lora is None:
        tensors = weights.stream_out(trained.params, trained.model)
    else:
        tensors = weights.stream_in(trained.source, trained.model, peft.deltas(trained.params, trained.model))
    huggingface.write(
        out,
        tensors,
        source=trained.source,
        model=trained.model,
        dtype=dtype,
        card=_card(trained, dtype=dtype),
        shard_bytes=shard_bytes,
    )


def write_adapter(trained: Trained, out: Path) -> None:
    """Write PEFT's folder `out`, likewise."""
    base = trained.hub or str(trained.source.resolve())
    with huggingface.unfinished(out) as folder_of:
        peft.write(folder_of, trained.params, trained.model, base=base)
        (folder_of / "README.md").write_text(_card(trained, dtype="float32", adapters=True), encoding="utf-8")


def _card(trained: Trained, *, dtype: str, adapters: bool = False) -> str:
    return card(
        trained.config,
        trained.evaluations,
        certificate=trained.certificate,
        hub=trained.hub,
        origin=huggingface.origin(trained.source),
        step=trained.step,
        dtype=dtype,
        adapters=adapters,
    )


if __name__ == "__main__":
    cli.leave(cli.run(main, commands.EXPORT, arguments=ARGUMENTS))

"""Write what a run has trained as a Hugging Face folder, for transformers and whatever else reads these.

    python -m ttrl_jax.export RUN --out DIR [--step N] [--dtype float32|bfloat16]

RUN is a run folder, DIR a new or empty one: weights as safetensors, config, tokenizer, and a model card with the run's
numbers.
"""

import dataclasses
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from absl import flags
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from ttrl_jax import cli
from ttrl_jax.card import card
from ttrl_jax.errors import InputError
from ttrl_jax.model import decoder, gguf, weights
from ttrl_jax.model.config import ModelConfig, read_config
from ttrl_jax.model.sharding import make_mesh, shardings
from ttrl_jax.run import folder
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.run.metrics import write_json
from ttrl_jax.source import model_source, parameter_count, tokenizer_of
from ttrl_jax.tasks import OWN

cli.define_out_flag()
flags.DEFINE_integer("step", None, "Training steps of the checkpoint; default: the newest.")
flags.DEFINE_string("dtype", "float32", "float32, bit by bit what was trained, or bfloat16, rounded and half the size.")

_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_SHARD_BYTES = 5 * 10**9


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run's model at one checkpoint."""

    config: dict[str, Any]  # of the run
    source: Path  # of the model that the run began with
    model: ModelConfig
    step: int
    evaluations: list[dict[str, Any]]  # until then, the first one before any step
    params: decoder.Params


def main(run: str) -> int:
    out, dtype = flags.FLAGS.out, flags.FLAGS.dtype
    if not out:
        raise InputError("--out is missing; give a new folder for the model")
    if dtype not in _DTYPES:
        raise InputError(f"--dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    trained = restore(Path(run), flags.FLAGS.step, out=Path(out), itemsize=_DTYPES[dtype].itemsize)
    write(trained, Path(out), dtype=dtype, shard_bytes=_SHARD_BYTES)
    print(f"{run} after {trained.step} steps is in {out}, as {dtype}")
    return 0


def restore(run: Path, step: int | None, *, out: Path, itemsize: int) -> Trained:
    """Read a run's parameters from its checkpoint of `step` (None: the newest), once all else is known to be there.

    Raises InputError if the run, a checkpoint, the model it began with, or room for `out` is missing.
    """
    config, made_with = folder.made_with(run, flag="RUN")
    _check_out(out)
    try:
        source = model_source(config["model"]["path"])
        same = weights.fingerprint(source) == made_with["fingerprint"]
        model = read_config(source)
    except (InputError, OSError) as error:
        raise InputError(f"the model that {run} began with is needed for its config and tokenizer: {error}") from error
    if not same:
        raise InputError(f"{source} is not the model that {run} began with, its files have changed; restore them")
    needed, free = itemsize * parameter_count(model), shutil.disk_usage(_existing(out)).free
    if free < needed:
        raise InputError(f"{out} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; choose another")
    mesh = make_mesh(data=1, fsdp=-1, tensor=1)
    shapes = decoder.shapes(model)
    placed = shardings(decoder.logical_axes(model), shapes, mesh)
    layout = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, placed)
    with Checkpoints(run / "checkpoints", keep=None) as checkpoints:
        step = checkpoints.latest() if step is None else step
        if step is None:
            raise InputError(f"{run} has no checkpoint yet; train until it has saved one")
        evaluations = checkpoints.meta(step)["evaluations"]
        params = checkpoints.restore_part(step, "params", layout)
    summary = folder.read_summary(run)
    if summary is not None and summary["steps"] == step:
        ends = {
            name.removesuffix("after").removesuffix("_"): x for name, x in summary.items() if name.endswith("after")
        }
        last = {"step": step} | {name or OWN: numbers for name, numbers in ends.items()}
        evaluations = [*(each for each in evaluations if each["step"] != step), last]
    return Trained(config, source, model, step, evaluations, params)


def write(trained: Trained, out: Path, *, dtype: str, shard_bytes: int) -> None:
    """Write the Hugging Face folder `out`. It appears under its name only when it is complete."""
    _check_out(out)
    tokenizer, stop_ids = tokenizer_of(trained.source)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        unfinished = Path(scratch) / "model"
        unfinished.mkdir()
        _write_weights(trained, unfinished, dtype=_DTYPES[dtype], shard_bytes=shard_bytes)
        write_json(unfinished / "config.json", _config_fields(trained) | {"dtype": dtype})
        tokenizer.save_pretrained(unfinished)
        generation = trained.source / "generation_config.json"
        if generation.is_file():
            shutil.copyfile(generation, unfinished / generation.name)
        else:
            write_json(unfinished / generation.name, {"eos_token_id": list(stop_ids)})
        text = card(trained.config, trained.evaluations, step=trained.step, dtype=dtype)
        (unfinished / "README.md").write_text(text, encoding="utf-8")
        unfinished.rename(out)


def _check_out(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; choose another --out")


def _existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _config_fields(trained: Trained) -> dict[str, Any]:
    if trained.source.is_file():
        fields = {name: x for name, x in gguf.config_fields(trained.source).items() if x is not None}
        return {"architectures": [f"{trained.model.family.capitalize()}ForCausalLM"]} | fields
    fields = json.loads((trained.source / "config.json").read_text(encoding="utf-8"))
    fields.pop("torch_dtype", None)  # what earlier releases of transformers called dtype
    return fields


def _write_weights(trained: Trained, where: Path, *, dtype: np.dtype, shard_bytes: int) -> None:
    """Safetensors files of at most `shard_bytes` (or one tensor), with an index if there are several.

    The parameters leave the mesh tensor by tensor: the host holds one file's.
    """
    shapes = weights.names(trained.model)
    split: StateDictSplit = split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=lambda shape: math.prod(shape) * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    waiting: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in weights.stream_out(trained.params, trained.model):
        file = split.tensor_to_filename[name]
        tensors = waiting.setdefault(file, {})
        tensors[name] = tensor.astype(dtype)
        if len(tensors) == len(split.filename_to_tensors[file]):
            print(f"writing {file}", file=sys.stderr)
            save_file(waiting.pop(file), where / file, metadata={"format": "pt"})  # transformers refuses files without
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(where / "model.safetensors.index.json", index)


if __name__ == "__main__":
    sys.exit(cli.run(main, doc=__doc__, takes="RUN"))

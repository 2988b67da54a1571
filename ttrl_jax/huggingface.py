"""A model written as a Hugging Face folder: weights as safetensors, config, tokenizer, model card."""

import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from ttrl_jax.errors import InputError
from ttrl_jax.model import gguf, weights
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.run import places
from ttrl_jax.run.metrics import write_json
from ttrl_jax.source import tokenizer_of

DTYPES = {
    name: np.dtype(kind) for name, kind in [("float32", "f4"), ("bfloat16", ml_dtypes.bfloat16), ("float16", "f2")]
}
SHARD_BYTES = 5 * 10**9


def write(
    out: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    source: Path,
    model: ModelConfig,
    dtype: str,
    card: str,
    shard_bytes: int,
) -> None:
    """Write the Hugging Face folder `out`. It appears under its name only when it is complete.

    Args:
      out: a new or empty folder.
      tensors: all of `weights.names(model)`, in that order; each is rounded to `dtype`. The host holds one file's.
      source: the Hugging Face folder or GGUF file that config and tokenizer are taken from; `model` is its config.
      dtype: one of DTYPES.
      card: the README, Markdown.
      shard_bytes: of a safetensors file at most, if it holds more than one tensor.

    Raises InputError if `out` holds something.
    """
    check_out(out)
    tokenizer, stop_ids = tokenizer_of(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        unfinished = Path(scratch) / "model"
        unfinished.mkdir()
        _write_weights(tensors, weights.names(model), unfinished, dtype=DTYPES[dtype], shard_bytes=shard_bytes)
        write_json(unfinished / "config.json", _config_fields(source, model) | {"dtype": dtype})
        tokenizer.save_pretrained(unfinished)
        generation = source / "generation_config.json"
        if generation.is_file():
            shutil.copyfile(generation, unfinished / generation.name)
        else:
            write_json(unfinished / generation.name, {"eos_token_id": list(stop_ids)})
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        unfinished.rename(out)


def check_out(out: Path) -> None:
    """Raises InputError unless `out` is a new or empty folder that can be written."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; choose another --out")
    places.require_writable(out.parent, flag="--out")  # where it is made, under another name


def check_room(out: Path, needed: int) -> None:
    """Raises InputError unless the disk of `out` has `needed` bytes free."""
    existing = out.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(f"{out} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; choose another")


def _config_fields(source: Path, model: ModelConfig) -> dict[str, Any]:
    if source.is_file():
        fields = {name: x for name, x in gguf.config_fields(source).items() if x is not None}
        return {"architectures": [f"{model.family.capitalize()}ForCausalLM"]} | fields
    fields = json.loads((source / "config.json").read_text(encoding="utf-8"))
    fields.pop("torch_dtype", None)  # what earlier releases of transformers called dtype
    return fields


def _write_weights(
    tensors: Iterable[tuple[str, np.ndarray]],
    shapes: dict[str, tuple[int, ...]],
    where: Path,
    *,
    dtype: np.dtype,
    shard_bytes: int,
) -> None:
    """Safetensors files of at most `shard_bytes` (or one tensor), with an index if there are several."""
    split: StateDictSplit = split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=lambda shape: math.prod(shape) * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    waiting: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors:
        file = split.tensor_to_filename[name]
        of_file = waiting.setdefault(file, {})
        of_file[name] = tensor.astype(dtype)
        if len(of_file) == len(split.filename_to_tensors[file]):
            print(f"writing {file}", file=sys.stderr)
            save_file(waiting.pop(file), where / file, metadata={"format": "pt"})  # transformers refuses files without
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(where / "model.safetensors.index.json", index)

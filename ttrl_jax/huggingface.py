"""A model written as a Hugging Face folder: weights as safetensors, config, tokenizer, model card."""

import contextlib
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import yaml
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from ttrl_jax.errors import InputError
from ttrl_jax.model import gguf, weights
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.run import places
from ttrl_jax.run.metrics import write_json
from ttrl_jax.source import text_files, tokenizer_of

DTYPES = {
    name: np.dtype(kind) for name, kind in [("float32", "f4"), ("bfloat16", ml_dtypes.bfloat16), ("float16", "f2")]
}
_HEAD = re.compile(r"---\s*\n(.*?)\n---\s*\n", re.DOTALL)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_GENERATION = "generation_config.json"
_MODE = 0o644  # whatever the libraries that write them think
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
      tensors: all tensors of `weights.names(model)`, in that order. Each is rounded to `dtype`. The host holds those of
        one file at a time.
      source: the Hugging Face folder or GGUF file that config and tokenizer are taken from; `model` is its config.
      dtype: one of DTYPES.
      card: the README, Markdown.
      shard_bytes: the largest size of a safetensors file that holds more than one tensor.

    Raises InputError if `out` holds something.
    """
    tokenizer, stops = tokenizer_of(source)
    with unfinished(out) as folder:
        _write_weights(tensors, weights.names(model), folder, dtype=DTYPES[dtype], shard_bytes=shard_bytes)
        write_json(folder / "config.json", _config_fields(source, model) | {"dtype": dtype})
        if source.is_dir():  # as they are: what transformers would write, not every release of it can read
            for file in text_files(source):
                shutil.copyfile(file, folder / file.name)
        else:
            save_tokenizer(tokenizer, folder)
        if not (folder / _GENERATION).is_file():
            write_json(folder / _GENERATION, {"eos_token_id": list(stops)})
        (folder / "README.md").write_text(card, encoding="utf-8")


@contextlib.contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` where nothing is raised. Raises InputError if `out` holds
    something."""
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        yield folder
        for file in folder.iterdir():
            file.chmod(_MODE)
        folder.rename(out)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer by its `save_pretrained`. The name of its class, and what belongs to that, is written as release
    4 of transformers wrote it, which later releases read too."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name in ("backend", "is_local", "local_files_only"):
        settings.pop(name, None)
    write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


def origin(source: Path) -> dict[str, Any]:
    """What a model folder says of itself on its own card, such as its license, and where it is from, as base_model;
    what it does not say is missing."""
    found: dict[str, Any] = {}
    card, config = source / "README.md", source / "config.json"
    if card.is_file() and (head := _HEAD.match(card.read_text(encoding="utf-8", errors="replace"))):
        try:
            said = yaml.safe_load(head[1])
        except yaml.YAMLError:  # a card is prose of somebody else's; a broken head says nothing
            said = None
        found = {name: x for name, x in said.items() if isinstance(x, str)} if isinstance(said, dict) else {}
    if config.is_file():
        name = json.loads(config.read_text(encoding="utf-8-sig")).get("_name_or_path")
        if isinstance(name, str) and _HUB_NAME.fullmatch(name):
            found["base_model"] = name
    return found


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
    """The fields of config.json. Those that releases 4 and 5 of transformers name differently have both names."""
    if source.is_file():
        fields = {name: x for name, x in gguf.config_fields(source).items() if x is not None}
        fields = {"architectures": [f"{model.family.capitalize()}ForCausalLM"]} | fields
    else:
        fields = json.loads((source / "config.json").read_text(encoding="utf-8-sig"))
    fields.pop("torch_dtype", None)  # the earlier name of dtype
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", fields.get("rope_theta", 10_000.0))
    stretched = {name: x for name, x in rope.items() if name not in ("rope_theta", "type")} | {"rope_type": kind}
    fields["rope_theta"], fields["rope_parameters"] = theta, stretched | {"rope_theta": theta}
    fields["rope_scaling"] = None if kind == "default" else stretched
    fields["tie_word_embeddings"] = model.tied  # as it was computed, whatever the source said beside its weights
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

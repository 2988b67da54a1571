"""Where a model comes from: a Hugging Face folder, a llama.cpp GGUF file, or a name on the hub."""

import sys
from pathlib import Path
from typing import Any

import huggingface_hub

from ttrl_jax.data import gguf_tokenizer
from ttrl_jax.data import prompts as text
from ttrl_jax.errors import InputError
from ttrl_jax.model import gguf
from ttrl_jax.model.shapes import named, parameter_count
from ttrl_jax.run import places

_HUB_FILES = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
]


def model_source(path: str, *, key: str = "model.path") -> Path:
    """A local Hugging Face folder or GGUF file: `path` itself, or the hub's files of that name, downloaded (with
    progress) or cached. Raises InputError if there is none, which calls what to change `key`."""
    local = places.local(path, flag=key)
    if local.is_dir() or (local.is_file() and local.suffix == ".gguf"):
        return local
    if local.is_file():
        raise InputError(f"{key} is the file {local.absolute()}; expected a model folder, a .gguf file or a hub name")
    if path.startswith((".", "/", "~")) or path.count("/") != 1 or local.suffix == ".gguf":
        raise InputError(f"There is no model {local.absolute()}; set {key} to a folder, a .gguf file or a hub name")
    print(f"taking {path} from the hub, or from its copy here{_size(path)} ...", file=sys.stderr, flush=True)
    try:
        return Path(huggingface_hub.snapshot_download(path, allow_patterns=_HUB_FILES))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path} is no model folder here and could not be fetched from the hub ({reason}); check the name and the "
            f"network, or set {key} to a folder or a .gguf file"
        ) from error


def tokenizer_of(source: Path) -> tuple[Any, tuple[int, ...]]:
    """A model source's tokenizer, and the ids that end a response."""
    if source.is_file():
        metadata = gguf.read(source).metadata
        return gguf_tokenizer.make(metadata, path=str(source)), gguf_tokenizer.stop_ids(metadata, path=str(source))
    tokenizer = text.load_tokenizer(str(source))
    return tokenizer, text.stop_ids(tokenizer, str(source))


def _size(name: str) -> str:
    """How large a well-known model is, to be told before it is fetched; nothing for others."""
    model = named(name)
    if model is None:
        return ""
    count = parameter_count(model) / 1e9
    return f": {count:.1f} billion parameters, {2 * count:.1f} GB in bfloat16"

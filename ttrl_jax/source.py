"""Where a model comes from: a Hugging Face folder, a llama.cpp GGUF file, or a name on the hub."""

import functools
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub

from ttrl_jax.data import gguf_tokenizer, stops
from ttrl_jax.data import prompts as text
from ttrl_jax.errors import InputError
from ttrl_jax.model import gguf, peft
from ttrl_jax.model.shapes import named, parameter_count
from ttrl_jax.run import places

_TEXT_FILES = [
    "generation_config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
]
_HUB_FILES = ["config.json", "params.json", "adapter_config.json", *_TEXT_FILES]
_WEIGHTS = ["model*.safetensors", "model.safetensors.index.json"]
_OLD_WEIGHTS = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]  # for models that have no others
_NOT = ["*/*"]  # sub-folders: a pattern's star goes into them
_CHECKOUT = Path(__file__).resolve().parent.parent  # whose configs/ has the quickstart's model


def is_local(path: str) -> bool:
    """Whether model.path is a folder or a file on this machine, not a name on the hub."""
    return Path(path).expanduser().exists()


def model_of_run(run: Path, path: str, *, recorded: str | None, given: str) -> str:
    """The model that `run` began with, for `model_source`: what --model gave, or else where it was, `recorded`, or else
    its model.path, which was relative to wherever the run was started, or to the checkout.

    Raises InputError if a model that was no name on the hub is not there any more.
    """
    if given:
        return given
    for place in (recorded, path, str(_CHECKOUT / path)):
        if place and is_local(place):
            return place
    if recorded is None:  # a name on the hub
        return path
    raise InputError(
        f"the model that {run} began with is not in {recorded} any more; add --model with the folder, or the .gguf "
        "file, where it lies now"
    )


def text_fingerprint(source: Path) -> str:
    """SHA-256 of what makes tokens of text beside the weights: tokenizer, chat template, stop tokens. A GGUF file has
    them in its first MiBs, which the fingerprint of its weights covers."""
    digest = hashlib.sha256()
    if source.is_dir():
        for path in text_files(source):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def model_source(path: str, *, key: str = "model.path") -> Path:
    """A local Hugging Face folder or GGUF file: `path` itself, or the files of the hub's model of that name, which are
    downloaded (with progress) or taken from the cache. Raises InputError if there is no such model; its sentence names
    `key` as the key to change."""
    local = places.local(path, flag=key)
    if local.is_dir() or (local.is_file() and local.suffix == ".gguf"):
        return local
    if local.is_file():
        raise InputError(f"{key} is the file {local.absolute()}; expected a model folder, a .gguf file or a hub name")
    if path.startswith((".", "/", "~")) or path.count("/") != 1 or local.suffix == ".gguf":
        raise InputError(f"There is no model {local.absolute()}; set {key} to a folder, a .gguf file or a hub name")
    print(f"taking {path} from the hub, or from its copy here{_size(path)} ...", file=sys.stderr, flush=True)
    return _from_hub(path, _fetched, what="model folder", instead=f"set {key} to a folder or a .gguf file")


def adapter_source(path: str, *, key: str = "model.adapter") -> Path:
    """A local PEFT folder: `path` itself, or the files of the hub's adapter of that name. Raises InputError if there is
    no such adapter; its sentence names `key` as the key to change."""
    local = places.local(path, flag=key)
    if path and local.is_dir():
        return local
    if local.is_file():
        raise InputError(f"{key} is the file {local}; give the folder that it is in, with its {peft.CONFIG}")
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise InputError(f"There is no adapter {path!r}; set {key} to a PEFT folder or a hub name")
    files = [peft.CONFIG, peft.WEIGHTS]
    fetch = functools.partial(huggingface_hub.snapshot_download, allow_patterns=files)
    return _from_hub(path, fetch, what="adapter", instead=f"set {key} to a PEFT folder")


def _from_hub(name: str, fetch: Callable[[str], str | Path], *, what: str, instead: str) -> Path:
    """fetch(name). Raises InputError where that fails; what: is looked for; instead: what else can be done."""
    try:
        return Path(fetch(name))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{name} is no {what} here and could not be fetched from the hub ({reason}); check the name and the "
            f"network, or {instead}"
        ) from error


def _fetched(name: str) -> Path:
    """The files of the hub's model that are used, and no others: not a second copy of its weights in another form."""
    folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES + _WEIGHTS, ignore_patterns=_NOT))
    if (folder / "config.json").is_file() and not list(folder.glob("model*.safetensors")):
        huggingface_hub.snapshot_download(name, allow_patterns=_OLD_WEIGHTS, ignore_patterns=_NOT)
    return folder


def text_files(source: Path) -> list[Path]:
    """What a model folder has beside config and weights: tokenizer, chat template, and how responses end."""
    return sorted({path for pattern in _TEXT_FILES for path in source.glob(pattern) if path.is_file()})


def tokenizer_of(source: Path) -> tuple[Any, stops.Stops]:
    """A model source's tokenizer, and the ids that by its files end a response."""
    if source.is_file():
        metadata = gguf.read(source).metadata
        ids = gguf_tokenizer.stop_ids(metadata, path=str(source))
        return gguf_tokenizer.make(metadata, path=str(source)), dict.fromkeys(ids, (source.name,))
    tokenizer = text.load_tokenizer(str(source))
    return tokenizer, stops.of_files(tokenizer, str(source))


def _size(name: str) -> str:
    """How large a well-known model is, to be told before it is fetched; nothing for others."""
    model = named(name)
    if model is None:
        return ""
    count = parameter_count(model) / 1e9
    return f": {count:.1f} billion parameters, {2 * count:.1f} GB in bfloat16"

"""The tokenizer that a GGUF file's metadata describes."""

from collections.abc import Mapping
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_PRE_TOKENIZER_SPLITS,
    GGUF_TOKENIZER_MAPPING,
    convert_gguf_tokenizer,
)

from ttrl_jax.errors import InputError

_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_STOPS = ("eos", "eot", "eom")  # end of sequence, of a turn, of a message


def make(metadata: Mapping[str, Any], *, path: str) -> PreTrainedTokenizerBase:
    """Make the tokenizer, with its chat template and special tokens.

    transformers has the parts; its own way to join them, `from_pretrained(..., gguf_file=...)`, needs torch.

    metadata: the file's, lists whole. Raises InputError if it describes no tokenizer that transformers can make.
    """
    given = {
        name: metadata[f"tokenizer.{key}"]
        for key, name in GGUF_TOKENIZER_MAPPING["tokenizer"].items()
        if f"tokenizer.{key}" in metadata
    }
    if "tokenizer_type" not in given or "tokens" not in given:
        raise InputError(f"{path} holds no tokenizer; use the model's Hugging Face folder")
    byte_level = given["tokenizer_type"] == "gpt2"
    split = given["pre_tokenizer_type"] if "pre_tokenizer_type" in given else "default"
    if byte_level and split not in {"default", "gpt-2", "smollm", *GGUF_PRE_TOKENIZER_SPLITS}:
        raise InputError(f"{path}: how its tokenizer {split!r} splits text is not known; use the Hugging Face folder")
    try:
        tokenizer, _ = convert_gguf_tokenizer(metadata["general.architecture"], given)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the tokenizer in {path} cannot be made: {' '.join(str(error).split())}") from error
    if split == "smollm":  # digits stand alone
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    ids = _ids(metadata, _SPECIAL, path)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        name_or_path=path,
        chat_template=metadata["tokenizer.chat_template"] if "tokenizer.chat_template" in metadata else None,
        # llama.cpp puts a bos token before text of a sentencepiece vocabulary that does not say otherwise.
        add_bos_token=_flag(metadata, "add_bos_token", default=not byte_level),
        add_eos_token=_flag(metadata, "add_eos_token", default=False),
        **{_SPECIAL[name]: given["tokens"][i] for name, i in ids.items()},
    )


def stop_ids(metadata: Mapping[str, Any], *, path: str) -> tuple[int, ...]:
    """Ids that end a response, ascending. Raises InputError if the metadata names none."""
    found = set(_ids(metadata, _STOPS, path).values())
    if not found:
        raise InputError(f"No token ends a response: {path} has no tokenizer.ggml.eos_token_id.")
    return tuple(sorted(found))


def _ids(metadata: Mapping[str, Any], names: Any, path: str) -> dict[str, int]:
    """The special tokens of these names that the metadata has, each with its id."""
    found = {name: metadata[key] for name in names if (key := f"tokenizer.ggml.{name}_token_id") in metadata}
    wrong = [name for name, i in found.items() if not 0 <= i < len(metadata["tokenizer.ggml.tokens"])]
    if wrong:
        raise InputError(f"{path}: the id of the {wrong[0]} token, {found[wrong[0]]}, is not in its vocabulary")
    return found


def _flag(metadata: Mapping[str, Any], name: str, *, default: bool) -> bool:
    key = f"tokenizer.ggml.{name}"
    return bool(metadata[key]) if key in metadata else default

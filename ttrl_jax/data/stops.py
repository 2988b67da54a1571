"""Which tokens end a response, and from where each is known."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ttrl_jax.data.prompts import TEMPLATE_ERRORS, decode
from ttrl_jax.errors import InputError

_FILES = ("config.json", "generation_config.json")
_ANSWER = "ttrlanswer"  # stands for an assistant's answer, in a template

Stops = dict[int, tuple[str, ...]]  # id -> from where it is known, in words


def of_run(tokenizer: PreTrainedTokenizerBase, files: Stops, *, end_of_turn: bool, texts: Sequence[str]) -> Stops:
    """The tokens that end the responses of a run: those that the files name, the token that ends a turn of the chat
    template if the template makes the prompts, and those that rollout.stop adds."""
    return joined([files, of_template(tokenizer) if end_of_turn else {}, of_texts(tokenizer, texts)])


def of_files(tokenizer: PreTrainedTokenizerBase, path: str) -> Stops:
    """The tokenizer's eos token, and `eos_token_id`, an id or a list of them, of the model's files, which are optional.

    path: the model's folder. Raises InputError if none names one, or if a file cannot be read.
    """
    found: Stops = {} if tokenizer.eos_token_id is None else {tokenizer.eos_token_id: ("tokenizer",)}
    for name in _FILES:
        file = Path(path).expanduser() / name
        if file.is_file():
            found = joined([found, dict.fromkeys(_eos_ids(file), (name,))])
    if not found:
        raise InputError(
            f"No token ends a response: {path} has neither an eos_token nor {' nor '.join(_FILES)} with eos_token_id."
        )
    return found


def of_template(tokenizer: PreTrainedTokenizerBase) -> Stops:
    """The special token that the chat template puts behind an answer: base models have it there, and another one as
    eos. Nothing where there is no template, or no such token."""
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(said, tokenize=False) if tokenizer.chat_template is not None else ""
    except TEMPLATE_ERRORS:  # it has no turns of an assistant; what it makes of a question is seen elsewhere
        return {}
    behind = text.rpartition(_ANSWER)[2].lstrip()
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = [token for token in special if behind.startswith(token)]
    return {special[max(found, key=len)]: ("chat template",)} if found and _ANSWER in text else {}


def of_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Stops:
    """All tokens, special ones too, whose text contains one of `texts`: "\\n" gives those that end a line.

    Raises InputError for a text that no single token has.
    """
    found: Stops = {}
    pieces = [decode(tokenizer, [i]) for i in range(len(tokenizer))] if texts else []
    for text in texts:
        ids = [i for i, piece in enumerate(pieces) if text and text in piece]
        if not ids:
            raise InputError(
                f"rollout.stop has {text!r}, which is in no single token of {tokenizer.name_or_path}; give a shorter "
                'text, such as "\\n"'
            )
        found = joined([found, dict.fromkeys(ids, (f"rollout.stop {text!r}",))])
    return found


def joined(several: Iterable[Mapping[int, tuple[str, ...]]]) -> Stops:
    """All of them, in the order of their ids."""
    found: Stops = {}
    for stops in several:
        for i, sources in stops.items():
            found[i] = (*found.get(i, ()), *(each for each in sources if each not in found.get(i, ())))
    return dict(sorted(found.items()))


def silent(tokenizer: PreTrainedTokenizerBase, stops: Iterable[int]) -> frozenset[int]:
    """Ids that are not part of the text of a response: special tokens that end a response or are padding."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(special & {*stops, tokenizer.pad_token_id})


def described(tokenizer: PreTrainedTokenizerBase, stops: Stops) -> str:
    """The tokens in words, the first few."""
    shown = [
        f"{tokenizer.convert_ids_to_tokens(i)!r} ({i}, {', '.join(sources)})" for i, sources in list(stops.items())[:4]
    ]
    more = f" and {len(stops) - 4} more" if len(stops) > 4 else ""
    return ", ".join(shown) + more


def _eos_ids(file: Path) -> list[int]:
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}.") from error
    named = config["eos_token_id"] if isinstance(config, dict) and "eos_token_id" in config else None
    ids = [] if named is None else named if isinstance(named, list) else [named]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise InputError(f"{file}: eos_token_id must be a token id or a list of them, not {named!r}.")
    return ids

"""From questions to prompt ids, from response ids to text, and which ids end a response."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ttrl_jax.data.problems import Problem
from ttrl_jax.errors import InputError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


Turn = dict[str, str]  # of a chat: "role" and "content"


def turns(question: str, *, system: str, prefix: str, suffix: str) -> list[Turn]:
    """The turns of a chat that ask a question: prefix + question + suffix as the user's, after a system turn unless
    `system` is empty (a chat template may then insert its own)."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": prefix + question + suffix}]


Messages = Callable[[str], list[Turn]]  # question -> turns


class PromptEncoder:
    """Makes the prompt of a question out of its turns, as a chat or as plain text.

    messages: the turns that ask a question.
    chat_template: render the turns with the tokenizer's chat template, opened for the assistant's answer. Without it
        the user's turns stand alone, one after the other, with the special tokens that the tokenizer adds to text.
    thinking: the switch `enable_thinking` of templates that have it; nothing to others and to plain text.
    max_tokens: the longest prompt allowed, in tokens.

    Raises InputError if a chat template is wanted and the tokenizer has none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        messages: Messages,
        chat_template: bool,
        thinking: bool,
        max_tokens: int,
    ):
        if chat_template and tokenizer.chat_template is None:
            raise InputError(
                f"The tokenizer of {tokenizer.name_or_path} has no chat template: set prompt.chat_template=False."
            )
        self._tokenizer = tokenizer
        self._messages = messages
        self._chat_template = chat_template
        self._thinking = thinking
        self._max_tokens = max_tokens

    def render(self, question: str) -> str:
        """The prompt's text, special tokens of the chat template spelled out.

        Raises InputError if the template refuses the turns, or if there is a system turn and no template to hold it.
        """
        said = self._messages(question)
        if not self._chat_template:
            if others := sorted({turn["role"] for turn in said} - {"user"}):
                raise InputError(
                    f"Turns of {', '.join(others)} need prompt.chat_template=True (prompt.system makes one of system); "
                    "in plain text there is the user's alone."
                )
            return "".join(turn["content"] for turn in said)
        try:
            return self._tokenizer.apply_chat_template(
                said,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=self._thinking,
            )
        except jinja2.TemplateError as error:
            raise InputError(
                f"The chat template of {self._tokenizer.name_or_path} refuses the prompt: {error}. Change "
                "prompt.system, or set prompt.chat_template=False."
            ) from error

    def encode(self, problems: Sequence[Problem]) -> list[np.ndarray]:
        """Prompt ids of each problem, int32 [T] of its own length.

        Raises InputError, naming the problems, if a prompt has no tokens or more than `max_tokens`.
        """
        # A chat template spells out its special tokens, the first one too; adding them would double that one.
        encoded = self._tokenizer(
            [self.render(problem.question) for problem in problems],
            add_special_tokens=not self._chat_template,
            padding=False,
            truncation=False,
            verbose=False,
        )["input_ids"]
        too_long = [i for i, ids in enumerate(encoded) if not 1 <= len(ids) <= self._max_tokens]
        if too_long:
            shown = ", ".join(f"{problems[i].id} ({len(encoded[i])})" for i in too_long[:5])
            more = f" and {len(too_long) - 5} more" if len(too_long) > 5 else ""
            raise InputError(
                f"A prompt must have 1 to {self._max_tokens} tokens; not so, by id (tokens): {shown}{more}. "
                "Raise prompt.max_tokens or take these questions out."
            )
        return [np.array(ids, np.int32) for ids in encoded]

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise now the InputError that `encode` would raise for one of `problems` later."""
        self.encode(problems)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local Hugging Face model folder. No code of the folder is run.

    Raises InputError if the folder, or a readable tokenizer in it, is missing.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"There is no model folder {folder.absolute()}.")
    # Without this check a config.json alone makes `transformers` invent a tokenizer with an empty vocabulary.
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise InputError(f"{path} has no tokenizer: expected one of {', '.join(_TOKENIZER_FILES)} in it.")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"The tokenizer in {path} cannot be loaded: {reason}") from error


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template that prompts are rendered with, as text; None if the tokenizer has none.

    Raises InputError if it has several and none of them is the default one.
    """
    if tokenizer.chat_template is None:
        return None
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise InputError(
            f"The tokenizer of {tokenizer.name_or_path} has chat templates {', '.join(tokenizer.chat_template)} and no "
            "'default' among them: name the one to use 'default'."
        ) from error


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int, path: str) -> None:
    """Raise InputError if the tokenizer can produce an id for which the model at `path` has no embedding.

    A model may have more embeddings than the tokenizer has tokens: many are padded to a round number.
    """
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= vocab_size:
        raise InputError(
            f"The tokenizer does not belong to the model in {path}: its token {token!r} has id {largest} "
            f"and the model's vocabulary ends at {vocab_size - 1}."
        )


def stop_ids(tokenizer: PreTrainedTokenizerBase, path: str) -> tuple[int, ...]:
    """Ids that end a response, ascending: the tokenizer's eos token and those of generation_config.json.

    path: the model's folder; the file is optional and its `eos_token_id` is one id or a list of them.

    Raises InputError if neither names one, or if the file cannot be read.
    """
    found = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    file = Path(path).expanduser() / "generation_config.json"
    if file.is_file():
        found.update(_eos_ids(file))
    if not found:
        raise InputError(
            f"No token ends a response: {path} has neither an eos_token nor {file.name} with eos_token_id."
        )
    return tuple(sorted(found))


def stop_text_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[int, ...]:
    """Ids of all tokens whose own text has one of `texts` in it, ascending: "\\n" gives those that end a line.

    Raises InputError for a text that no single token has.
    """
    found = set()
    pieces = [decode(tokenizer, [i]) for i in range(len(tokenizer))] if texts else []
    for text in texts:
        ids = [i for i, piece in enumerate(pieces) if text and text in piece]
        if not ids:
            raise InputError(
                f"rollout.stop has {text!r}, which is in no single token of {tokenizer.name_or_path}; give a shorter "
                'text, such as "\\n"'
            )
        found.update(ids)
    return tuple(sorted(found))


def _eos_ids(file: Path) -> list[int]:
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}.") from error
    named = config["eos_token_id"] if isinstance(config, dict) and "eos_token_id" in config else None
    ids = [] if named is None else named if isinstance(named, list) else [named]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise InputError(f"{file}: eos_token_id must be a token id or a list of them, not {named!r}.")
    return ids


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | np.ndarray) -> str:
    """The text of token ids, special tokens left out and spaces as the tokens have them."""
    return tokenizer.decode(
        np.asarray(ids, np.int64).tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )

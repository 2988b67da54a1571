"""From questions to prompt ids, and from response ids to text."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ttrl_jax.data.problems import Problem
from ttrl_jax.errors import InputError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# What a chat template raises that cannot do with the turns it is given: it is a program of somebody else's.
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)

Turn = dict[str, str]  # of a chat: "role" and "content"


def turns(question: str, *, system: str, prefix: str, suffix: str) -> list[Turn]:
    """The turns of a chat that ask a question: a system turn, and a user turn with prefix + question + suffix. If
    `system` is empty there is no system turn (a chat template may then insert its own)."""
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

        Raises InputError if the template refuses the turns or drops the question, or if there is a system turn and no
        template to hold it.
        """
        said = self._messages(question)
        if not self._chat_template:
            if others := sorted({turn["role"] for turn in said} - {"user"}):
                raise InputError(
                    f"Turns of {', '.join(others)} need prompt.chat_template=True (prompt.system makes one of system); "
                    "in plain text there is the user's alone."
                )
            return "".join(turn["content"] for turn in said)
        name, failed = self._tokenizer.name_or_path, []
        # Templates of models that also see pictures take a list of parts, and make nothing of a text.
        parts = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in said]
        for shape in (said, parts):
            try:
                text = self._rendered(shape)
            except TEMPLATE_ERRORS as error:
                failed.append(error)
                continue
            if _holds(text, said):
                return text
            failed.append(text)
        if isinstance(failed[0], str):
            raise InputError(
                f"The chat template of {name} drops the question: of {question!r} it makes the prompt {failed[0]!r}. "
                "Mend the template, or set prompt.chat_template=False."
            )
        raise InputError(
            f"The chat template of {name} refuses the prompt: {failed[0]}. Change prompt.system, or set "
            "prompt.chat_template=False."
        ) from failed[0]

    def _rendered(self, said: list[Any]) -> str:
        return self._tokenizer.apply_chat_template(
            said, tokenize=False, add_generation_prompt=True, enable_thinking=self._thinking
        )

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

    def longest(self, problems: Sequence[Problem]) -> int:
        """Tokens of the longest prompt. Raises now the InputError that `encode` would raise for one of them later."""
        return max(map(len, self.encode(problems)))


def _holds(text: str, said: list[Turn]) -> bool:
    """Whether a prompt has all that the user said, however it is spaced."""
    squeezed = "".join(text.split())
    if "{'type':'text'," in squeezed:  # a list of parts that was printed
        return False
    return all("".join(turn["content"].split()) in squeezed for turn in said if turn["role"] == "user")


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local Hugging Face model folder. No code of the folder is run.

    Raises InputError if the folder, or a readable tokenizer in it, is missing.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"There is no model folder {folder.absolute()}.")
    # Without this check a config.json alone makes `transformers` invent a tokenizer with an empty vocabulary.
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        alone = " but tekken.json, which Mistral's own program reads" if (folder / "tekken.json").is_file() else ""
        raise InputError(f"{path} has no tokenizer{alone}: expected one of {', '.join(_TOKENIZER_FILES)} in it.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return _as_the_file_says(tokenizer, folder)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"The tokenizer in {path} cannot be loaded: {reason}") from error


def _as_the_file_says(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer with the parts that tokenizer.json has. For some model types transformers puts parts of its own in
    their place, whatever the file says; other programs read the file."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return tokenizer
    said = json.loads(Tokenizer.from_file(str(file)).to_str())
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    if all(made[part] == said[part] for part in ("normalizer", "pre_tokenizer", "decoder", "model")):
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


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


def decode(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | np.ndarray, *, silent: frozenset[int] = frozenset()
) -> str:
    """The text of token ids, spaces as the tokens have them. Special tokens stay, as answers may be between them; those
    of `silent` do not."""
    kept = [i for i in np.asarray(ids, np.int64).tolist() if i not in silent]
    return tokenizer.decode(
        kept, skip_special_tokens=False, clean_up_tokenization_spaces=False, spaces_between_special_tokens=False
    )

"""What the first evaluation says of a run that would be worth nothing: one response as an example, and silence."""

from collections.abc import Mapping
from typing import Any

from ml_collections import FrozenConfigDict

from ttrl_jax.errors import InputError

HARDLY = 0.9  # share of responses without an answer from which a vote means nothing
_MOST = 0.5
_SHOWN = 500  # characters of a text


def example(row: Mapping[str, Any]) -> list[str]:
    """Lines that show the first response of a row of `generations` beside its prompt, and what was read out of it."""
    sample = row["samples"][0]
    read = "no answer" if sample["answer"] is None else f"answer {_short(sample['answer'])}"
    cut = ", cut at the limit" if sample["truncated"] else ""
    return [
        f"example   prompt   {_short(row['prompt'])}",
        f"          response {_short(sample['response'])}",
        f"          {sample['tokens']} tokens{cut}, read as: {read}",
    ]


def silence(numbers: Mapping[str, float], config: FrozenConfigDict) -> str | None:
    """One sentence if hardly any response of an evaluation has an answer, or most are cut and most have none: the
    shares, the likely cause, and the key to change. numbers: as `evaluation.evaluate` returns them."""
    silent, cut = numbers["no_answer_rate"], numbers["truncation_rate"]
    if silent < HARDLY and not (silent > _MOST and cut > _MOST):
        return None
    limit = config.rollout.max_tokens
    if cut > _MOST:
        cause = f"they are longer than rollout.max_tokens={limit}: raise it"
        if config.prompt.thinking:
            cause += ", or set prompt.thinking=False"
    elif config.task:
        cause = f"the task's own reader, {config.task}, does not find what the model writes"
    else:
        cause = f"the model does not write what reward.extract={tuple(config.reward.extract)} reads: let prompt.suffix "
        cause += "ask for that, see to prompt.chat_template, or read answers in another way (docs/answers.md)"
    return (
        f"{silent:.0%} of the responses have no answer and {cut:.0%} were cut, so that votes and rewards mean nothing; "
        f"probably {cause}. The responses are in rollouts/; reward.allow_silence=True trains all the same"
    )


def require_answers(numbers: Mapping[str, float], config: FrozenConfigDict) -> None:
    """Raises InputError where `silence` has something to say, unless the config allows it."""
    said = silence(numbers, config)
    if said and not config.reward.allow_silence:
        raise InputError(said)


def _short(text: str) -> str:
    """A text on one line, without its middle if it is long."""
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}"
    return repr(text)

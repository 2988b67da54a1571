"""Set the keys that a config leaves unset. The model decides how long responses are, at which temperature they are
sampled, and how a question is asked. Where two keys have to fit each other and one of them was set, the other follows.

A prompt must follow the model: if a model is asked for the box twice, or not at all, its scores change. The values are
those of the paper (arXiv 2504.16084) and of its code, `verl/examples/ttrl/*/*.sh`.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from ttrl_jax import commands
from ttrl_jax.check import OLD_REMAT, OLD_RULES
from ttrl_jax.errors import InputError

# The reference's scripts write "\n" where nothing turns it into a line break, so that its models see a back-slash and
# an n. Here it is a line break. DeepSeek, too, recommends to ask its reasoning models for the box in the user's turn.
SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Kind:
    temperature: float  # of training samples
    max_tokens: int  # of a response


KINDS = {
    "boxing": Kind(1.0, 3072),  # its own template asks for the box: Qwen2.5-Math
    "reasoning": Kind(1.0, 32768),  # it thinks first: DeepSeek-R1-Distill, Skywork-OR1, Qwen3 with thinking on
    "plain": Kind(0.6, 3072),  # all others: Llama-3.1-Instruct, Qwen2.5, Qwen3 with thinking off
}

# Models that think whatever is asked, for folders whose chat template does not open the answer with <think>.
_REASONING_NAMES = re.compile(r"R1-Distill|Skywork-OR1", re.IGNORECASE)
_BOX = "\\boxed"
_SWITCH = "enable_thinking"


Adjusted = tuple[FrozenConfigDict, dict[str, str]]  # the config; key -> what it was before and why, in words

VOTES, SAMPLES, PROMPTS, PART = "rollout.votes", "train.samples", "rollout.prompts", "train.minibatch_prompts"


def agree(config: FrozenConfigDict, *, given: Collection[str] = ()) -> Adjusted:
    """Let keys that are coupled agree: train.samples with rollout.votes, and train.minibatch_prompts with
    rollout.prompts.

    given: the keys set on the command line. A key that was set there keeps its value, and the other key of the pair
    follows. If neither was set there, the key that a config file has changed from its default keeps its value.

    Raises InputError where both keys were set, and do not agree.
    """
    defaults = commands.flat(commands.defaults())

    def follower(one: str, other: str, sentence: str) -> str:
        ranks = {key: 2 if key in given else int(_get(config, key) != defaults[key]) for key in (one, other)}
        if ranks[one] == ranks[other]:
            values = f"{one}={_get(config, one)} and {other}={_get(config, other)}"
            raise InputError(f"{values} do not go together: {sentence}; change one of them")
        return min(ranks, key=ranks.__getitem__)

    changes: dict[str, tuple[int, str]] = {}
    votes, samples, prompts, part = (_get(config, key) for key in (VOTES, SAMPLES, PROMPTS, PART))
    if samples > votes:
        if follower(VOTES, SAMPLES, "what is trained on is some of the votes") == SAMPLES:
            changes[SAMPLES] = votes, f"to go with {VOTES}"
        else:
            changes[VOTES] = samples, f"to go with {SAMPLES}"
    if min(prompts, part) > 0 and prompts % part:
        if follower(PROMPTS, PART, "the questions of a step are cut into minibatches of one size") == PART:
            changes[PART] = _even(prompts, part), f"to go with {PROMPTS}"
        else:
            changes[PROMPTS] = -(-prompts // part) * part, f"to go with {PART}"
    return _adjusted(config, changes)


def agree_with_data(config: FrozenConfigDict, *, questions: int, given: Collection[str] = ()) -> Adjusted:
    """Lower rollout.prompts to the number of questions there are to train on, and train.minibatch_prompts with it.
    Raises InputError where rollout.prompts was set on the command line."""
    prompts, part = _get(config, PROMPTS), _get(config, PART)
    if questions >= prompts:
        return config, {}
    if PROMPTS in given:
        raise InputError(
            f"{PROMPTS}={prompts} is more than the {questions} questions that there are (data.path, data.level, "
            f"data.limit); lower it to {questions}, or leave it out"
        )
    changes = {PROMPTS: (questions, "as there are no more questions")}
    if questions % part:
        changes[PART] = _even(questions, part), f"to go with {PROMPTS}"
    return _adjusted(config, changes)


def _get(config: FrozenConfigDict, key: str) -> Any:
    section, leaf = key.split(".")
    return config[section][leaf]


def _adjusted(config: FrozenConfigDict, changes: Mapping[str, tuple[int, str]]) -> Adjusted:
    whole, sources = ConfigDict(config.as_configdict()), {}
    for key, (value, why) in changes.items():
        section, leaf = key.split(".")
        whole[section][leaf] = value
        sources[key] = f"{_get(config, key)} before, {why}"
    return FrozenConfigDict(whole), sources


def _even(prompts: int, most: int) -> int:
    """Questions of a minibatch, at most `most`, so that those of a step are cut as evenly as so few parts can be."""
    return -(-prompts // -(-prompts // most))


def resolve(
    config: FrozenConfigDict, *, template: str | None, max_positions: int
) -> tuple[FrozenConfigDict, dict[str, str]]:
    """Set what `config` leaves unset (None).

    template: the chat template in the model's folder, as text; None if it has none.
    max_positions: positions of the model, which prompt and response share.

    Returns the whole config, without older spellings of keys, and a dict that says in words where the value of a key
    comes from, for each key that the model or an older spelling can decide. A decided limit that does not fit is
    lowered. A given limit that does not fit is kept, and refused elsewhere.
    Raises InputError if prompt.thinking is given and the model cannot do it.
    """
    prompt = config.prompt
    thinking = _thinking(config, template)
    asks = _BOX in (template or "")
    name = "reasoning" if thinking else "boxing" if asks else "plain"
    kind = KINDS[name]
    # A system turn takes the place of the template's own, and plain text has no template.
    asks_here = asks and prompt.chat_template and not prompt.system
    asked = asks_here or any(_BOX in given for given in (prompt.system, prompt.prefix))
    room = max_positions - prompt.max_tokens
    decided = {
        "prompt.suffix": "" if asked else SUFFIX,
        "prompt.thinking": thinking,
        "rollout.temperature": kind.temperature,
        "rollout.max_tokens": min(kind.max_tokens, room) if room > 0 else kind.max_tokens,
    }
    whole, sources = ConfigDict(config.as_configdict()), {}
    with whole.unlocked():
        if config.reward.kind is not None:
            whole.judge.rule, whole.reward.kind = OLD_RULES[config.reward.kind], None
            sources["judge.rule"] = f"by its older spelling, reward.kind={config.reward.kind!r}"
        if config.train.remat in OLD_REMAT:
            whole.train.remat = OLD_REMAT[config.train.remat]
            sources["train.remat"] = f"by its older spelling, {config.train.remat}"
        for key, value in decided.items():
            section, leaf = key.split(".")
            sources[key] = "set"
            if config[section][leaf] is None:
                whole[section][leaf] = value
                sources[key] = f"decided by the model ({name})"
                if key == "rollout.max_tokens" and value < kind.max_tokens:
                    sources[key] += f", lowered from {kind.max_tokens} to fit its {max_positions} positions"
    return FrozenConfigDict(whole), sources


def _thinking(config: FrozenConfigDict, template: str | None) -> bool:
    """Whether the model thinks before it answers: the config's word where the model leaves a choice."""
    wanted, path = config.prompt.thinking, config.model.path
    if _SWITCH in (template or ""):
        if wanted and not config.prompt.chat_template:
            raise InputError(
                f"prompt.thinking=True is a switch of the chat template of {path}; set prompt.chat_template=True"
            )
        return bool(wanted)  # unset: off, as in the paper's main table
    # What follows the last mention of add_generation_prompt is how the template opens an answer.
    opening = (template or "").rpartition("add_generation_prompt")[2]
    opens = "<think>" in opening and "</think>" not in opening
    always = opens or _REASONING_NAMES.search(Path(path).name) is not None
    if not always and "</think>" in (template or ""):
        return bool(wanted)  # it only takes thoughts out of earlier turns, as templates of both sorts of model do
    if wanted is not None and wanted != always:
        can = "always thinks before it answers" if always else "does not think before it answers"
        raise InputError(
            f"prompt.thinking={wanted}, but {path} {can}, by its chat template and its name; leave prompt.thinking "
            "unset, or take a model whose chat template has the switch enable_thinking"
        )
    return always

"""Hand-worked: what each kind of model decides, and that a given value always stands."""

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from configs import default, quickstart_sums
from ttrl_jax.errors import InputError
from ttrl_jax.resolve import agree, agree_with_data, resolve

# The features that tell kinds of models apart, as their templates have them.
BOXING = (
    "{% if messages[0].role != 'system' %}<|system|>Reason, and box your answer with \\\\boxed{}.{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}<|assistant|>"
)
STRIPS = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content.split('<think>')[0] }}"
    "{{ message.content.split('</think>')[-1] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKS = STRIPS.replace("<|assistant|>", "<|assistant|><think>\n")
SWITCH = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
PLAIN = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}<|assistant|>"

# A real line break, and one back-slash.
SUFFIX = "\n" + r"Please reason step by step, and put your final answer within \boxed{}."
KEYS = ("prompt.suffix", "prompt.thinking", "rollout.temperature", "rollout.max_tokens")


def config(**changes: object) -> FrozenConfigDict:
    """The defaults for a model called "some/model", with `section__key` values changed."""
    c = default.get_config()
    c.model.path = "some/model"
    for name, value in changes.items():
        section, key = name.split("__")
        c[section][key] = value
    return FrozenConfigDict(c)


def values(found: ConfigDict) -> tuple[object, ...]:
    return (found.prompt.suffix, found.prompt.thinking, found.rollout.temperature, found.rollout.max_tokens)


def decide(template: str | None, *, max_positions: int = 131072, **changes: object) -> tuple[object, ...]:
    found, _ = resolve(config(**changes), template=template, max_positions=max_positions)
    return values(found)


KINDS = {
    # template, name, prompt.thinking -> suffix, thinking, temperature, max_tokens; the kind
    "Qwen2.5-Math": (BOXING, "Qwen/Qwen2.5-Math-7B", None, ("", False, 1.0, 3072), "boxing"),
    "its copy under another name": (BOXING, "/models/mine", False, ("", False, 1.0, 3072), "boxing"),
    "Llama-3.1-Instruct": (PLAIN, "meta-llama/Llama-3.1-8B-Instruct", None, (SUFFIX, False, 0.6, 3072), "plain"),
    "a base model": (None, "/models/base", None, (SUFFIX, False, 0.6, 3072), "plain"),
    "Qwen3": (SWITCH, "Qwen/Qwen3-8B", None, (SUFFIX, False, 0.6, 3072), "plain"),
    "Qwen3, thinking off": (SWITCH, "Qwen/Qwen3-8B", False, (SUFFIX, False, 0.6, 3072), "plain"),
    "Qwen3, thinking on": (SWITCH, "Qwen/Qwen3-8B", True, (SUFFIX, True, 1.0, 32768), "reasoning"),
    "it opens <think>": (THINKS, "/models/mine", None, (SUFFIX, True, 1.0, 32768), "reasoning"),
    "its thoughts are empty": (
        THINKS.replace("<think>\n", "<think></think>"),
        "/models/mine",
        None,
        (SUFFIX, False, 0.6, 3072),
        "plain",
    ),
    "it strips thoughts": (STRIPS, "/models/mine", None, (SUFFIX, False, 0.6, 3072), "plain"),
    "it strips thoughts, thinking off": (STRIPS, "/models/mine", False, (SUFFIX, False, 0.6, 3072), "plain"),
    "it strips thoughts, thinking on": (STRIPS, "/models/mine", True, (SUFFIX, True, 1.0, 32768), "reasoning"),
    "R1's first template": (STRIPS, "x/DeepSeek-R1-Distill-Qwen-7B", None, (SUFFIX, True, 1.0, 32768), "reasoning"),
    "R1 by its name": (
        PLAIN,
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        None,
        (SUFFIX, True, 1.0, 32768),
        "reasoning",
    ),
    "Skywork by its name": (None, "/models/skywork-or1-math-7b/", None, (SUFFIX, True, 1.0, 32768), "reasoning"),
    "a folder under such a name": (PLAIN, "/runs/R1-Distill/base", None, (SUFFIX, False, 0.6, 3072), "plain"),
    "boxing and thinking": (BOXING + "<think>", "/models/mine", None, ("", True, 1.0, 32768), "reasoning"),
}


@pytest.mark.parametrize(("template", "name", "thinking", "expected", "kind"), KINDS.values(), ids=KINDS)
def test_kinds(template: str | None, name: str, thinking: bool | None, expected: tuple[object, ...], kind: str):
    given = config(model__path=name, prompt__thinking=thinking)
    found, sources = resolve(given, template=template, max_positions=131072)
    assert values(found) == expected
    decided = f"decided by the model ({kind})"
    assert sources == dict.fromkeys(KEYS, decided) | ({} if thinking is None else {"prompt.thinking": "set"})


@pytest.mark.parametrize("template", [BOXING, PLAIN, SWITCH, THINKS, None])
@pytest.mark.parametrize(
    ("key", "value"),
    [("prompt.suffix", ""), ("prompt.suffix", "\nBox it."), ("rollout.temperature", 0.3), ("rollout.max_tokens", 77)],
)
def test_a_given_value_stands(template: str | None, key: str, value: object):
    given = config(**{key.replace(".", "__"): value})
    free = dict(zip(KEYS, decide(template), strict=True))
    found, sources = resolve(given, template=template, max_positions=131072)
    assert dict(zip(KEYS, values(found), strict=True)) == free | {key: value}
    assert [name for name, source in sources.items() if source == "set"] == [key]


def test_nothing_else_changes():
    given = config(model__path="x/y", train__learning_rate=1e-3)
    found, _ = resolve(given, template=PLAIN, max_positions=4096)
    want = given.as_configdict().to_dict()
    want["prompt"] |= {"suffix": SUFFIX, "thinking": False}
    want["rollout"] |= {"temperature": 0.6, "max_tokens": 3072}
    assert found.as_configdict().to_dict() == want
    assert resolve(found, template=BOXING, max_positions=4096)[0] == found


def test_the_quickstart_sets_its_own():
    given = FrozenConfigDict(quickstart_sums.get_config())
    found, sources = resolve(given, template=PLAIN, max_positions=64)
    assert values(found) == ("", False, 1.0, 13)
    assert [key for key, source in sources.items() if source != "set"] == ["prompt.thinking"]


@pytest.mark.parametrize(
    ("changes", "suffix"),
    [
        ({}, ""),
        ({"prompt__system": "Be brief."}, SUFFIX),  # takes the place of the system turn that asks
        ({"prompt__system": r"Use \boxed{}."}, ""),
        ({"prompt__prefix": r"Use \boxed{}: "}, ""),
        ({"prompt__chat_template": False}, SUFFIX),
        ({"prompt__chat_template": False, "prompt__prefix": r"Use \boxed{}: "}, ""),
    ],
)
def test_the_box_is_asked_for_once(changes: dict[str, object], suffix: str):
    assert decide(BOXING, **changes) == (suffix, False, 1.0, 3072)


@pytest.mark.parametrize(
    ("max_positions", "prompt", "expected"),
    [(4096, 1024, 3072), (4095, 1024, 3071), (2048, 512, 1536), (513, 512, 1), (512, 512, 3072), (100, 512, 3072)],
)
def test_a_decided_limit_is_lowered_to_what_fits(max_positions: int, prompt: int, expected: int):
    """Where not one token fits, the limit stays for the check of both lengths to refuse."""
    found, sources = resolve(config(prompt__max_tokens=prompt), template=BOXING, max_positions=max_positions)
    assert found.rollout.max_tokens == expected
    lowered = f", lowered from 3072 to fit its {max_positions} positions" if expected < 3072 else ""
    assert sources["rollout.max_tokens"] == "decided by the model (boxing)" + lowered


def test_a_given_limit_is_not_lowered():
    found, sources = resolve(config(rollout__max_tokens=5000), template=BOXING, max_positions=4096)
    assert (found.rollout.max_tokens, sources["rollout.max_tokens"]) == (5000, "set")


@pytest.mark.parametrize(
    ("template", "changes", "words"),
    [
        (PLAIN, {"prompt__thinking": True}, "prompt.thinking=True, but some/model does not think"),
        (BOXING, {"prompt__thinking": True}, "does not think"),
        (None, {"prompt__thinking": True}, "does not think"),
        (THINKS, {"prompt__thinking": False}, "prompt.thinking=False, but some/model always thinks"),
        (PLAIN, {"prompt__thinking": False, "model__path": "x/DeepSeek-R1-Distill-Qwen-7B"}, "always thinks"),
        (SWITCH, {"prompt__thinking": True, "prompt__chat_template": False}, "set prompt.chat_template=True"),
    ],
)
def test_what_a_model_cannot_do_is_refused(template: str | None, changes: dict[str, object], words: str):
    with pytest.raises(InputError, match=words):
        decide(template, **changes)
    del changes["prompt__thinking"]
    decide(template, **changes)


VOTES, SAMPLES, PROMPTS, PART = "rollout.votes", "train.samples", "rollout.prompts", "train.minibatch_prompts"


def coupled(found: ConfigDict) -> tuple[int, int, int, int]:
    return found.rollout.votes, found.train.samples, found.rollout.prompts, found.train.minibatch_prompts


@pytest.mark.parametrize(
    ("values", "given", "expected"),
    [
        ((64, 32, 8, 1), (), (64, 32, 8, 1)),  # the defaults
        ((16, 32, 8, 1), (VOTES,), (16, 16, 8, 1)),
        ((16, 32, 8, 1), (), (16, 16, 8, 1)),  # by a file: samples is as by default
        ((64, 80, 8, 1), (SAMPLES,), (80, 80, 8, 1)),
        ((16, 32, 8, 1), (SAMPLES,), (32, 32, 8, 1)),  # a file's 16 gives way to the command line
        ((8, 16, 8, 1), (VOTES,), (8, 8, 8, 1)),  # both by a file, and one on the command line
        ((64, 32, 4, 8), (PROMPTS,), (64, 32, 4, 4)),
        ((64, 32, 12, 8), (PROMPTS,), (64, 32, 12, 6)),
        ((64, 32, 13, 8), (PROMPTS,), (64, 32, 13, 7)),  # 7 and 6
        ((64, 32, 8, 16), (PART,), (64, 32, 16, 16)),
        ((64, 32, 8, 3), (PART,), (64, 32, 9, 3)),
        ((64, 32, 8, 3), (), (64, 32, 9, 3)),
        ((64, 32, 8, 4), (PROMPTS, PART), (64, 32, 8, 4)),
    ],
)
def test_of_two_coupled_keys_one_follows_the_other(values, given, expected):
    before = config(
        rollout__votes=values[0],
        train__samples=values[1],
        rollout__prompts=values[2],
        train__minibatch_prompts=values[3],
    )
    found, sources = agree(before, given=given)
    assert coupled(found) == expected
    changed = {
        key: old for key, old, new in zip((VOTES, SAMPLES, PROMPTS, PART), values, expected, strict=True) if old != new
    }
    assert sources.keys() == changed.keys()
    assert all(sources[key].startswith(f"{old} before, to go with ") for key, old in changed.items())


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({"rollout__votes": 16, "train__samples": 17}, ()),
        ({"rollout__votes": 16, "train__samples": 32}, (VOTES, SAMPLES)),
        ({"rollout__prompts": 9, "train__minibatch_prompts": 2}, (PROMPTS, PART)),
    ],
)
def test_two_coupled_keys_that_were_set_alike_must_agree(changes, given):
    with pytest.raises(InputError, match="do not go together") as raised:
        agree(config(**changes), given=given)
    assert all(name.replace("__", ".") in str(raised.value) for name in changes)


@pytest.mark.parametrize(
    ("questions", "prompts", "part", "expected"),
    [(64, 8, 8, (8, 8)), (8, 8, 8, (8, 8)), (3, 8, 1, (3, 1)), (3, 8, 8, (3, 3)), (6, 8, 4, (6, 3))],
)
def test_a_step_has_no_more_questions_than_there_are(questions, prompts, part, expected):
    found, sources = agree_with_data(
        config(rollout__prompts=prompts, train__minibatch_prompts=part), questions=questions
    )
    assert coupled(found)[2:] == expected
    assert (PROMPTS in sources, PART in sources) == (prompts != expected[0], part != expected[1])


def test_more_questions_than_there_are_are_refused_where_they_were_asked_for():
    with pytest.raises(InputError, match="rollout.prompts=8 is more than the 3 questions"):
        agree_with_data(config(), questions=3, given=(PROMPTS,))

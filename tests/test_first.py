"""Hand-worked: what the first evaluation says of a run that would be worth nothing."""

import pytest

from configs import default
from ttrl_jax.errors import InputError
from ttrl_jax.measure.first import example, require_answers, silence


def config():
    made = default.get_config()
    made.rollout.max_tokens, made.prompt.thinking, made.prompt.suffix = 48, False, "Think."
    return made


@pytest.mark.parametrize(
    ("silent", "cut", "words"),
    [
        (1.0, 1.0, ("100% of the responses have no answer", "100% were cut", "rollout.max_tokens=48: raise it")),
        (0.6, 0.6, ("60% of the responses", "raise it")),
        (0.95, 0.1, ("95%", "reward.extract=('boxed',)", "prompt.suffix", "chat_template")),
    ],
)
def test_silence_is_said_with_its_cause(silent: float, cut: float, words: tuple[str, ...]):
    numbers = {"no_answer_rate": silent, "truncation_rate": cut}
    said = silence(numbers, config())
    assert all(word in said for word in (*words, "reward.allow_silence=True"))
    with pytest.raises(InputError, match="no answer"):
        require_answers(numbers, config())


@pytest.mark.parametrize(("silent", "cut"), [(0.89, 0.4), (0.4, 1.0), (0.0, 0.0), (0.51, 0.5)])
def test_a_run_that_has_something_to_vote_on_goes_on(silent: float, cut: float):
    """Also one of a model that never ends a response, but answers in it."""
    assert silence({"no_answer_rate": silent, "truncation_rate": cut}, config()) is None


def test_silence_can_be_allowed():
    made = config()
    made.reward.allow_silence = True
    require_answers({"no_answer_rate": 1.0, "truncation_rate": 1.0}, made)


def test_an_example_is_three_lines_whatever_is_in_it():
    sample = {"response": "a\n" * 1000, "answer": None, "tokens": 48, "truncated": True}
    shown = example({"prompt": "What is\n1 + 1?", "samples": [sample]})
    assert shown[0] == r"example   prompt   'What is\n1 + 1?'" and len(shown) == 3
    assert len(shown[1]) < 800 and " ... " in shown[1]
    assert shown[2] == "          48 tokens, cut at the limit, read as: no answer"
    sample |= {"response": r"\boxed{2}", "answer": "2", "truncated": False}
    assert example({"prompt": "", "samples": [sample]})[2] == "          48 tokens, read as: answer '2'"

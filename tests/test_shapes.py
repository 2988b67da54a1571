"""Hand-worked: the known models have as many parameters as their pages on the hub say."""

import pytest

from ttrl_jax.model.shapes import named, parameter_count

PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-Math-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "deepseek-ai/deepseek-math-7b-instruct": 6_910_365_696,
    "Skywork/Skywork-OR1-Math-7B": 7_615_616_512,
    "Skywork/Skywork-OR1-7B": 7_615_616_512,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "mistralai/Mistral-Nemo-Instruct-2407": 12_247_782_400,
    "mistralai/Ministral-8B-Instruct-2410": 8_019_808_256,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    assert parameter_count(named(name)) == PUBLISHED[name]


def test_what_the_count_does_not_show():
    math, base, tuned = (named(f"Qwen/Qwen2.5-{name}") for name in ("Math-7B", "7B", "7B-Instruct"))
    assert (math.rope.theta, math.max_positions) == (1e4, 4096)
    assert (base.rope.theta, base.max_positions, tuned.max_positions) == (1e6, 131_072, 32_768)
    llama, small = named("meta-llama/Llama-3.1-8B"), named("meta-llama/Llama-3.2-3B-Instruct")
    assert (llama.rope.kind, llama.rope.factor, llama.rope.original) == ("llama3", 8.0, 8192)
    assert (small.rope.factor, small.tied, small.head_dim) == (32.0, True, 128)
    assert named("mistralai/Mistral-Nemo-Instruct-2407").windows is None
    assert named("mistralai/Ministral-8B-Instruct-2410").windows == (32_768,) * 36


def test_a_name_that_is_not_known():
    assert named("Qwen/Qwen2.5-Math-0.5B") is None
    assert named("") is None

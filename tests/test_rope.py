"""Hand-worked and parity: which rotation a config.json asks for, and its frequencies."""

import math

import numpy as np
import pytest

from ttrl_jax.errors import InputError
from ttrl_jax.model.config import parse_config
from ttrl_jax.model.rope import Rope, frequencies, parse_rope

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}


def parse(rope, *, length=2048, **fields):
    problems = []
    got = parse_rope({"rope_parameters": rope, "max_position_embeddings": length, **fields}, problems)
    assert not problems
    return got


def test_plain_and_linear():
    # theta 10000, H 8: 10000^(-2i/8) = 10^(-i)
    np.testing.assert_allclose(frequencies(Rope(), 8), [1, 0.1, 0.01, 0.001], rtol=1e-6)
    np.testing.assert_allclose(frequencies(Rope("linear", factor=4.0), 8), [0.25, 0.025, 0.0025, 0.00025], rtol=1e-6)


def test_llama3_mixes_by_the_number_of_turns():
    # The pairs of theta 10000, H 8 turn 20, 2, 0.2 and 0.02 times over an original context of 20 x 2 pi = 40 pi.
    rope = Rope("llama3", factor=8.0, original=40 * math.pi, slow=1.0, fast=4.0)
    # 20 turns: untouched; 2 turns: a third of the way from 1 to 4; fewer than 1: over 8.
    want = [1, 0.1 * (2 / 3 / 8 + 1 / 3), 0.01 / 8, 0.001 / 8]
    np.testing.assert_allclose(frequencies(rope, 8), want, rtol=1e-6)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_mixes_by_the_index_of_the_pair(truncate):
    # Over 2000 pi positions the pairs turn 1000, 100, 10 and 1 times: 500 turns is pair log10(2) = 0.30, 2 turns pair
    # 3 - 0.30 = 2.70. Truncated: pairs 0 and 3. Pair i is then stretched by (i - low) / (high - low) of the way.
    rope = Rope("yarn", factor=4.0, original=2000 * math.pi, slow=2.0, fast=500.0, truncate=truncate)
    low, high = (0, 3) if truncate else (math.log10(2), 3 - math.log10(2))
    way = np.clip((np.arange(4) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(frequencies(rope, 8), 10.0 ** -np.arange(4) * (way / 4 + 1 - way), rtol=1e-6)


def test_both_spellings_mean_the_same():
    want = Rope("llama3", 5e5, 8.0, 8192, slow=1.0, fast=4.0)
    inside = {**LLAMA3, "original_max_position_embeddings": 8192}
    assert parse({**inside, "rope_theta": 5e5}) == want
    assert parse(None, rope_scaling=inside, rope_theta=5e5) == want
    assert parse({**inside, "rope_theta": 5e5}, rope_theta=1.5) == want  # what stands inside goes first
    old = {"type": "linear", "factor": 2}
    assert parse(None, rope_scaling=old) == parse({"rope_type": "linear", "factor": 2.0}) == Rope("linear", factor=2.0)
    both = {"type": "linear", "rope_type": "yarn", "factor": 2}  # as transformers 4.43 to 4.57 wrote it
    assert parse(None, rope_scaling=both).kind == "yarn"
    assert parse(None, rope_scaling={}) == parse({"rope_type": "default"}) == parse({}) == Rope()


def test_an_absent_original_context_is_the_models_own():
    assert parse(LLAMA3, length=4096).original == 4096
    assert parse({**YARN, "original_max_position_embeddings": 512}, length=4096).original == 512


def test_the_scale_of_yarn():
    assert parse(YARN).scale == pytest.approx(0.1 * math.log(4) + 1)
    assert parse({**YARN, "factor": 1.0}).scale == 1.0
    assert parse({**YARN, "attention_factor": 0.5}).scale == 0.5
    mscale = {"mscale": 0.5, "mscale_all_dim": 1.0}
    assert parse({**YARN, **mscale}).scale == pytest.approx((0.05 * math.log(4) + 1) / (0.1 * math.log(4) + 1))
    assert parse({**YARN, "mscale": 0.5}).scale == parse(YARN).scale  # alone it means nothing
    assert parse({**YARN, "beta_fast": None}) == parse(YARN)
    assert (parse(YARN).slow, parse(YARN).fast, parse(YARN).truncate) == (1.0, 32.0, True)
    assert parse({**YARN, "beta_slow": 2, "beta_fast": 16, "truncate": False}).fast == 16.0


def test_yarn_lengthens_the_context_however_the_file_counts_it():
    fields = {"model_type": "llama", "vocab_size": 50, "hidden_size": 64, "intermediate_size": 64, "rms_norm_eps": 1e-6}
    fields |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    yarn = {**YARN, "original_max_position_embeddings": 100}
    for given, want in ((100, 400), (150, 400), (400, 400), (500, 500)):
        assert parse_config({**fields, "max_position_embeddings": given, "rope_scaling": yarn}).max_positions == want
    assert parse_config({**fields, "max_position_embeddings": 100, "rope_scaling": LLAMA3}).max_positions == 100


REFUSED = [
    ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' .* length of the row"),
    ({"rope_type": "longrope", "factor": 2.0}, "'longrope' .* outgrows the original"),
    ({"rope_type": ["yarn"]}, "is not known"),
    ({"rope_type": "linear"}, "factor is missing"),
    ({**LLAMA3, "low_freq_factor": None}, "low_freq_factor is missing"),
    ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor should be above"),
    ({**LLAMA3, "beta_fast": 32}, "beta_fast does not belong to 'llama3'"),
    ({**YARN, "factor": "4"}, "factor='4' should be a number"),
    ({**YARN, "factor": 0}, "factor=0 should be a number above 0"),
    ({**YARN, "truncate": None}, "truncate=None should be true or false"),
    ({"rope_type": "default", "factor": 2.0}, "factor does not belong to 'default'"),
    ({"rope_theta": 1}, "rope_theta=1 should be a number above 1"),
    ([1], "should be an object"),
]


@pytest.mark.parametrize(("rope", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_used_is_named(rope, message):
    fields = {"model_type": "llama", "vocab_size": 50, "hidden_size": 64, "intermediate_size": 64, "rms_norm_eps": 1e-6}
    fields |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128}
    for name in ("rope_parameters", "rope_scaling"):
        with pytest.raises(InputError, match=message):
            parse_config({**fields, name: rope})
    with pytest.raises(InputError, match="both set"):
        parse_config({**fields, "rope_parameters": {"rope_type": "default"}, "rope_scaling": YARN})


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_frequencies_are_those_of_transformers(kind):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    for case in range(40):
        given = {"rope_type": kind, "rope_theta": float(rng.choice([1e2, 1e4, 5e5, 1e6]))}
        given["factor"] = float(rng.choice([1.0, 2.0, 3.5, 8.0]))
        if kind == "llama3":
            given |= {"low_freq_factor": float(rng.choice([0.5, 1])), "high_freq_factor": float(rng.choice([2, 4]))}
        if kind != "linear" and case % 2:
            given["original_max_position_embeddings"] = int(rng.choice([8, 64, 8192]))
        if kind == "yarn":
            given |= {"mscale": 0.7, "mscale_all_dim": 1.2} if case % 5 == 0 else {}
            given |= {"attention_factor": 1.3} if case % 7 == 0 else {}
            given |= {"beta_fast": 16.0, "beta_slow": 2.0} if case % 4 == 0 else {}
            given |= {"truncate": bool(case % 3)} if case % 2 else {}
        head_dim, length = int(rng.choice([4, 12, 64, 128])), int(rng.choice([16, 4096]))
        config = transformers.LlamaConfig(head_dim=head_dim, max_position_embeddings=length, rope_parameters={**given})
        want, scale = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](config)
        rope = parse(given, length=length)
        np.testing.assert_allclose(frequencies(rope, head_dim), want.numpy(), rtol=2e-6)
        assert rope.scale == pytest.approx(scale, rel=1e-12)

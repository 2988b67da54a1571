"""Semantics: what XLA makes of a run's programs for NVIDIA GPUs, compiled for those that need not be there.

Skipped without the compiler, which `pip install -e ".[cuda13,test]"` brings with Python 3.12 and newer; then
`pytest -q tests/test_gpu.py` runs it on any machine, in eight minutes on one core.
"""

from pathlib import Path

import pytest
from plans import FFN, LAYER_KEYS, LAYERS, MATH_1_5B, SLOTS, VOCAB, WEIGHTS, model_folder, planned, programs, sizes

from ttrl_jax.plan import gpus

pytestmark = pytest.mark.skipif(not gpus.installed(), reason="the compiler for NVIDIA GPUs is not installed")
FLASH, BACK, TRITON = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward", "__gpu$xla.gpu.triton"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"), **MATH_1_5B)


def aime(model: Path, topology: str, *settings: str) -> dict:
    return planned(f"aime.py:{model}", topology, "--questions=30", *settings)


def test_a_plan_for_a_gpu(model: Path):
    """Its memory and what a process gets of it, the roofline, and how many programs a run has."""
    told = aime(model, "h100")
    (plan,) = told["plans"]
    assert told["device"] == "NVIDIA H100 80GB HBM3" and told["attention"] == "cudnn"
    assert told["decode_attention"] == "triton"
    assert told["share"] == pytest.approx(0.75 * told["memory"]) and 84e9 < told["memory"] < 86e9
    assert plan["verdict"].startswith("it fits: ") and plan["environment"] == {}
    assert plan["seconds"]["step"] > 0 and plan["run"]["hours"] > 0
    assert plan["programs_of_run"] == {"decode": 4, "prefill": 1, "update": 5}
    assert plan["compile_s"] >= sum(program["compile_s"] for program in plan["programs"]) > 0


def test_whole_rows_go_through_flash_attention_and_the_decode_loop_through_our_kernel(model: Path):
    calls = {name: row["custom_calls"] for name, row in programs(aime(model, "h100")).items()}
    assert calls["sample prefill"] == calls["evaluate prefill"] == {FLASH: LAYERS}
    assert calls["score"] == calls["score of short rows"] == {FLASH: 1}  # the layers are scanned
    for name in ("update gradient", "update gradient of short rows"):
        assert calls[name][FLASH] >= 1 and calls[name][BACK] == 1, name
    assert FLASH not in calls["sample decode"] and calls["sample decode"][TRITON] == LAYERS


def test_the_decode_loop_copies_no_cache(model: Path):
    """It is there once: what comes out takes the place of what goes in."""
    decode = programs(aime(model, "h100"))["sample decode"]
    assert decode["loop_kernels"] > 10 * LAYERS  # the loop that is read is that of the steps
    assert all(one["bytes"] < LAYER_KEYS / 1000 for one in decode["loop_copies"]), decode["loop_copies"]
    assert LAYERS * 2 * LAYER_KEYS <= decode["aliased"] < 1.01 * LAYERS * 2 * LAYER_KEYS


def test_the_update_writes_over_what_it_is_given(model: Path):
    """The sum of the gradient; and in an optimizer step masters and both moments, beside which nothing of their size is
    made."""
    found = programs(aime(model, "h100"))
    for name in ("update gradient", "update gradient of short rows"):
        assert found[name]["aliased"] == pytest.approx(4 * WEIGHTS, rel=1e-3)
    assert found["update step"]["aliased"] == pytest.approx(3 * 4 * WEIGHTS, rel=1e-3)
    assert found["update step"]["activations"] < 0.01 * 4 * WEIGHTS


def test_masters_and_moments_in_bfloat16_are_written_over(model: Path):
    """Three arrays of 2 bytes for each weight. Neither rounding nor the computation in float32 makes one more."""
    both = ("--config.train.master_dtype=bfloat16", "--config.train.moments_dtype=bfloat16")
    step = programs(aime(model, "h100", *both))["update step"]
    assert step["aliased"] == pytest.approx(3 * 2 * WEIGHTS, rel=1e-3)
    assert step["activations"] < 0.01 * 2 * WEIGHTS


def test_what_is_needed_in_between_is_within_what_is_planned_with(model: Path):
    """No more than the arithmetic that the search for settings begins with; and while decoding, the logits in float32
    not four times."""
    told = aime(model, "h100")
    found, guesses = programs(told), told["plans"][0]["estimates"]
    for name in ("sample prefill", "sample decode", "update gradient", "update gradient of short rows"):
        guess = guesses[next(key for key in guesses if key in name)]
        assert found[name]["together"] <= guess, name
    assert found["sample decode"]["activations"] < 4 * 4 * SLOTS * VOCAB


def test_tokens_of_packed_rows_are_gathered_and_never_scattered(model: Path):
    """What a scatter adds up in the loop over the layers would be slow, and on a GPU in an order of its own. Outside
    of it the embedding's gradient is one."""
    found = programs(aime(model, "h100"))
    for name in ("update gradient", "update gradient of short rows"):
        assert found[name]["loop_kernels"] > 10 and found[name]["scatters"] >= 1
        assert found[name]["loop_scatters"] == 0, name


def test_weights_are_gathered_by_the_update_and_not_by_the_decode_loop(model: Path):
    """On 8 GPUs, each of which has the whole weights while it samples."""
    told = aime(model, "h100:8")
    found = programs(told)
    assert told["devices"] == 8 and told["plans"][0]["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    decode = found["sample decode"]["loop_collectives"]
    assert decode and decode[0]["bytes"] < 10_000  # which samples have ended
    assert found["sample decode"]["custom_calls"][TRITON] == LAYERS
    assert all(one["bytes"] < LAYER_KEYS / 8000 for one in found["sample decode"]["loop_copies"])
    gathered = [one for one in found["update gradient"]["loop_collectives"] if one["kind"] == "all-gather"]
    assert any(one["bytes"] > 1e6 for one in gathered)


def test_heads_ffn_and_vocabulary_split_over_gpus(model: Path):
    """The kernel attends to the heads of each GPU; and in a pass of the update each computes with its own part of the
    weights, of which it gathers no more."""
    found = programs(aime(model, "h100:8", "--config.mesh.tensor=2"))
    assert found["sample decode"]["custom_calls"][TRITON] == LAYERS
    assert all(one["bytes"] < LAYER_KEYS / 8000 for one in found["sample decode"]["loop_copies"])
    for name in ("score", "score of short rows", "update gradient", "update gradient of short rows"):
        exchanged = sizes(found[name]["loop_collectives"])
        assert FFN // 2 in exchanged and not exchanged & {FFN, VOCAB}, found[name]["loop_collectives"]


@pytest.mark.parametrize("kind", ["h200", "a100-80", "l40s"])
def test_other_gpus(kind: str):
    """The quickstart's model, in the type that their kernels compute in."""
    told = planned("quickstart_sums.py", kind, "--config.model.dtype=bfloat16")
    (plan,) = told["plans"]
    assert told["device"] == gpus.GPUS[kind].kind and told["attention"] == "cudnn"
    found = programs(told)
    assert FLASH in found["sample prefill"]["custom_calls"] and TRITON in found["sample decode"]["custom_calls"]
    assert plan["fits"] and plan["seconds"]["step"] > 0

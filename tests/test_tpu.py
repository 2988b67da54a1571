"""Semantics: what XLA makes of a run's programs for TPUs, compiled for slices that need not be there.

Skipped without libtpu, which `pip install -e ".[tpu,test]"` brings; then `pytest -q tests/test_tpu.py` runs it on any
machine, in about 45 minutes on one core.
"""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from plans import FFN, LAYER_KEYS, LAYERS, MATH_1_5B, ROOT, VOCAB, WEIGHTS, model_folder, planned, programs, sizes

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
SPLASH, CHIPS = "tpu_custom_call", 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"), **MATH_1_5B)


def aime(model: Path, topology: str, *settings: str) -> dict:
    told = planned(f"aime.py:{model}", topology, "--questions=30", *settings)
    assert told["attention"] == "splash"
    return told


def on_8_chips(model: Path, tensor: int = 1, *settings: str) -> dict[str, dict]:
    told = aime(model, "v5e:2x4", f"--config.mesh.tensor={tensor}", *settings)
    assert told["plans"][0]["mesh"] == {"data": 1, "fsdp": CHIPS // tensor, "tensor": tensor}
    return programs(told)


def test_whole_rows_go_through_splash_and_the_decode_loop_does_not(model: Path):
    calls = {name: row["custom_calls"].get(SPLASH, 0) for name, row in on_8_chips(model).items()}
    assert calls["sample prefill"] == calls["evaluate prefill"] == LAYERS
    assert calls["score"] == 1  # the layers are scanned
    assert calls["update gradient"] >= 3  # forward, and backward to the queries, and to keys and values
    assert calls["sample decode"] == calls["sample copy"] == 0 and "sample grow" not in calls


def test_the_decode_loop_moves_no_weights_cache_or_logits_between_chips(model: Path):
    """Each chip has the whole weights and its own slots: all that it learns of the others is which samples have ended,
    as the free slots of a group are filled in order."""
    found = on_8_chips(model)["sample decode"]["loop_collectives"]
    assert found and found[0]["bytes"] < 10_000


def test_a_vocabulary_split_over_chips_is_not_gathered_in_the_decode_loop(model: Path):
    """The logits of a chip's part go to where their votes are drawn; neither they nor the weights are gathered."""
    found = on_8_chips(model, 2)["sample decode"]["loop_collectives"]
    assert any(one["kind"] == "all-to-all" for one in found)
    assert not any(one["kind"] == "all-gather" and one["bytes"] > 1e5 for one in found)


def test_a_step_of_training_gathers_weights(model: Path):
    """Of what the loops move between chips, so that a program without any would not pass for one with little."""
    found = on_8_chips(model)["update gradient"]["loop_collectives"]
    assert any(one["kind"] == "all-gather" and one["bytes"] > 1e6 for one in found)


def test_a_step_of_training_exchanges_no_part_of_another_chip(model: Path):
    """Where ffn and vocabulary are split, each chip computes with its part alone; of weights it gathers no more."""
    found = on_8_chips(model, 2)
    for name in ("score", "score of short rows", "update gradient", "update gradient of short rows"):
        exchanged = found[name]["loop_collectives"]
        assert exchanged and not sizes(exchanged) & {FFN, VOCAB}, exchanged


def test_the_decode_loop_has_the_cache_once(model: Path):
    """What comes out takes the place of what goes in. Some of it XLA moves to a chip's vector memory and back in each
    step, by itself beside other work (copy-start); nothing is copied within the main memory."""
    decode = on_8_chips(model)["sample decode"]
    assert LAYERS * 2 * LAYER_KEYS / CHIPS <= decode["aliased"] < 1.01 * LAYERS * 2 * LAYER_KEYS / CHIPS
    assert decode["loop_kernels"] > 10 * LAYERS  # the loop that is read is that of the steps
    whole = [one["kind"] for one in decode["loop_copies"] if one["bytes"] >= LAYER_KEYS / CHIPS]
    assert "copy" not in whole, decode["loop_copies"]


def test_the_update_writes_over_what_it_is_given(model: Path):
    """The sum of the gradient; and in an optimizer step masters and both moments, beside which nothing of their size is
    made."""
    found, masters = on_8_chips(model), 4 * WEIGHTS / CHIPS
    for name in ("update gradient", "update gradient of short rows"):
        assert found[name]["aliased"] == pytest.approx(masters, rel=0.01)
    assert found["update step"]["aliased"] == pytest.approx(3 * masters, rel=0.01)
    if jax.__version_info__ >= (0, 12):  # the compiler of 0.10 needs five times the masters in between
        assert found["update step"]["activations"] < 0.5 * masters


def test_masters_and_moments_in_bfloat16_are_written_over(model: Path):
    """Three arrays of 2 bytes for each weight."""
    both = ("--config.train.master_dtype=bfloat16", "--config.train.moments_dtype=bfloat16")
    step = on_8_chips(model, 1, *both)["update step"]
    assert step["aliased"] == pytest.approx(3 * 2 * WEIGHTS / CHIPS, rel=0.01)


def test_tokens_of_packed_rows_are_gathered_and_never_scattered(model: Path):
    """What a scatter adds up in the loop over the layers would be slow. The embedding's gradient alone is scattered."""
    for name in ("update gradient", "update gradient of short rows"):
        found = on_8_chips(model)[name]
        assert found["loop_kernels"] > 10 and found["loop_scatters"] == 0, name


def test_what_is_needed_is_within_what_is_planned_with(model: Path):
    """No more than the arithmetic that the search for settings begins with."""
    told = aime(model, "v5e:2x4", "--config.mesh.tensor=1")
    found, guesses = programs(told), told["plans"][0]["estimates"]
    for name in ("sample prefill", "sample decode", "update gradient", "update gradient of short rows"):
        guess = guesses[next(key for key in guesses if key in name)]
        assert found[name]["together"] <= guess, name


def test_a_run_has_few_programs(model: Path):
    (plan,) = aime(model, "v5e:2x4", "--config.mesh.tensor=1")["plans"]
    assert plan["programs_of_run"] == {"decode": 4, "prefill": 1, "update": 5}
    assert plan["verdict"].startswith("it fits: ")


def test_what_does_not_fit_one_chip_is_made_to(model: Path):
    """200 GB of cache for 32,768 responses at once; the nearest settings have fewer slots."""
    told = aime(model, "v5e:1x1", "--config.rollout.rows=65536", "--config.rollout.prompts=512", "--questions=512")
    first, *_, last = told["plans"]
    assert told["memory"] == 16e9 and not first["fits"] and first["reason"]
    assert last["fits"] and last["change"]["rollout.rows"] < 65536
    assert max(program["together"] for program in last["programs"]) <= 16e9
    assert last["run"]["hours"] * 3600 >= last["run"]["steps"] * last["seconds"]["step"]


def test_adapters_on_a_base_that_is_there_once(model: Path):
    """On one chip: the update has the base once, in bfloat16, and nothing near its size comes in between, though the
    layers are looked up one by one; the decode loop moves no weights."""
    told = aime(model, "v5e:1x1", "--config.lora.rank=16", "--config.rollout.rows=64")
    found = programs(told)
    assert told["plans"][0]["fits"]
    for name in ("sample decode", "score", "update gradient", "update gradient of short rows", "update step"):
        assert 2 * WEIGHTS < found[name]["weights"] < 2.15 * WEIGHTS, name
    layer = 2 * (WEIGHTS - VOCAB * 1536) / LAYERS
    copies = [one for one in found["sample decode"]["loop_copies"] if one["bytes"] > layer / 20]
    of_weights = [one for one in copies if sizes([one]) & {1536, FFN}]
    assert not [one for one in of_weights if one["kind"] == "copy"], copies


def test_a_slice_that_there_is_not(model: Path):
    command = [sys.executable, "-m", "ttrl_jax.plan", f"--config=configs/aime.py:{model}", "--topology=v5e:3x3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: --topology=v5e:3x3") and "Traceback" not in done.stderr


def test_the_notebook_of_math500_is_for_one_chip():
    """The settings of its parameters, with the shape of the real model, on a chip with 16 GB."""
    cells = json.loads((ROOT / "colab" / "math500_level1.ipynb").read_text())["cells"]
    source = "".join(next(cell["source"] for cell in cells if "parameters" in str(cell["metadata"])))
    settings = {line.targets[0].id: line.value for line in ast.parse(source).body}
    parameters = {name: ast.literal_eval(settings[name]) for name in ("CONFIG", "SETTINGS", "QUESTIONS")}
    command = [sys.executable, "-m", "ttrl_jax.plan", "--json", "--topology=v5e:1x1"]
    command += ["--config", parameters["CONFIG"], f"--questions={parameters['QUESTIONS']}", *parameters["SETTINGS"]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (plan,) = json.loads(done.stdout)["plans"]  # the first fits
    assert plan["fits"] and 8e9 < max(program["together"] for program in plan["programs"]) < 14.5e9


@pytest.mark.parametrize("sizes", [(1, 32, 2), (2, 16, 2), (1, 8, 8), (4, 16, 1)])
def test_a_mesh_may_split_an_axis_of_any_slice(sizes: tuple[int, int, int]):
    """8 x 8 chips of v6e, whose axes hold neither 32 nor 2 as they are; the devices only, nothing is compiled."""
    code = "from ttrl_jax.model.sharding import make_mesh; from ttrl_jax.plan.slices import devices; "
    code += f"mesh = make_mesh(data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]}, devices=devices('v6e:8x8')); "
    code += "print(*mesh.devices.shape, len({device.id for device in mesh.devices.flat}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [*map(str, sizes), "64"], done.stdout + done.stderr

"""Semantics: what XLA makes of a run's programs for TPUs, compiled for slices that need not be there.

Skipped without libtpu, which `pip install -e ".[tpu,test]"` brings; then `pytest -q tests/test_tpu.py` runs it on any
machine, in two minutes on 2 quiet cores.
"""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of the shape of Qwen2.5-0.5B, without weights; the tokenizer is another model's."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(ROOT / "configs" / "quickstart_model", folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    fields = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4_864, "num_hidden_layers": 2}
    fields |= {"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936, "rms_norm_eps": 1e-6}
    fields |= {"tie_word_embeddings": True, "max_position_embeddings": 32_768, "rope_theta": 1e6}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@cache
def planned(model: Path, topology: str, *settings: str) -> dict:
    """The plan at the settings of AIME, made in a process whose own devices are CPUs."""
    command = [sys.executable, "-m", "ttrl_jax.plan", "--json", f"--config=configs/aime.py:{model}", "--questions=30"]
    done = subprocess.run(
        [*command, f"--topology={topology}", *settings], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["attention"] == "splash"
    return told


def programs(model: Path, tensor: int) -> dict[str, dict]:
    told = planned(model, "v5e:2x4", f"--config.mesh.tensor={tensor}")
    assert told["plans"][0]["mesh"] == {"data": 1, "fsdp": 8 // tensor, "tensor": tensor}
    return {program["label"]: program for program in told["plans"][0]["programs"]}


def test_whole_rows_go_through_splash_and_the_decode_loop_does_not(model: Path):
    calls = {name: row["splash_calls"] for name, row in programs(model, 1).items()}
    assert calls["sample prefill"] == calls["evaluate prefill"] == 2  # one in each layer, none of which is trained
    assert calls["score"] == 1  # the layers are scanned
    assert calls["update gradient"] >= 3  # forward, and backward to the queries, and to keys and values
    assert calls["sample decode"] == calls["sample copy"] == calls["sample grow"] == 0


def test_the_decode_loop_moves_no_weights_cache_or_logits_between_chips(model: Path):
    """Each chip has the whole weights and its own slots: all that it learns of the others is which samples have ended,
    as the free slots of a group are filled in order."""
    found = programs(model, 1)["sample decode"]["loop_collectives"]
    assert found and found[0]["bytes"] < 10_000


def test_a_vocabulary_split_over_chips_is_not_gathered_in_the_decode_loop(model: Path):
    """The logits of a chip's part go to where their votes are drawn; neither they nor the weights are gathered."""
    found = programs(model, 2)["sample decode"]["loop_collectives"]
    assert any(one["kind"] == "all-to-all" for one in found)
    assert not any(one["kind"] == "all-gather" and one["bytes"] > 1e5 for one in found)


def test_a_step_of_training_gathers_weights(model: Path):
    """Of what the loops move between chips, so that a program without any would not pass for one with little."""
    found = programs(model, 1)["update gradient"]["loop_collectives"]
    assert any(one["kind"] == "all-gather" and one["bytes"] > 1e6 for one in found)


def test_what_does_not_fit_one_chip_is_made_to(model: Path):
    """100 GB of cache for 32,768 responses at once; the nearest settings have fewer slots."""
    told = planned(model, "v5e:1x1", "--config.rollout.rows=65536", "--config.rollout.prompts=512", "--questions=512")
    first, *_, last = told["plans"]
    assert told["memory"] == 16e9 and not first["fits"] and first["reason"]
    assert last["fits"] and last["change"]["rollout.rows"] < 65536
    assert max(program["together"] for program in last["programs"]) <= 16e9
    assert last["run"]["hours"] * 3600 >= last["run"]["steps"] * last["seconds"]["step"]


def test_a_slice_that_there_is_not(model: Path):
    command = [sys.executable, "-m", "ttrl_jax.plan", f"--config=configs/aime.py:{model}", "--topology=v5e:3x3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: --topology=v5e:3x3") and "Traceback" not in done.stderr


def test_the_notebook_of_math500_is_for_one_chip():
    """The settings of its parameters, with the shape of the real model, on a chip with 16 GB."""
    cells = json.loads((ROOT / "colab" / "math500_level1.ipynb").read_text())["cells"]
    source = "".join(next(cell["source"] for cell in cells if "parameters" in str(cell["metadata"])))
    parameters = {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(source).body}
    command = [sys.executable, "-m", "ttrl_jax.plan", "--json", "--topology=v5e:1x1"]
    command += ["--config", parameters["CONFIG"], f"--questions={parameters['QUESTIONS']}", *parameters["SETTINGS"]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (plan,) = json.loads(done.stdout)["plans"]  # the first fits
    assert plan["fits"] and 10e9 < max(program["together"] for program in plan["programs"]) < 16e9


@pytest.mark.parametrize("sizes", [(1, 32, 2), (2, 16, 2), (1, 8, 8), (4, 16, 1)])
def test_a_mesh_may_split_an_axis_of_any_slice(sizes: tuple[int, int, int]):
    """8 x 8 chips of v6e, whose axes hold neither 32 nor 2 as they are; the devices only, nothing is compiled."""
    code = "from ttrl_jax.model.sharding import make_mesh; from ttrl_jax.plan.__main__ import devices; "
    code += f"mesh = make_mesh(data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]}, devices=devices('v6e:8x8')); "
    code += "print(*mesh.devices.shape, len({device.id for device in mesh.devices.flat}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [*map(str, sizes), "64"], done.stdout + done.stderr

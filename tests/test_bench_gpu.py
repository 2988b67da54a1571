"""Semantics and hand-worked: the benchmark of one GPU: bounds, shares and the table; and a tiny run on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_model import QWEN2

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "peers")]

import bench_gpu  # noqa: E402
import gpu_bench  # noqa: E402
import gpu_worker  # noqa: E402

from ttrl_jax.plan.arithmetic import Chip  # noqa: E402
from ttrl_jax.rollout.slots import Layout  # noqa: E402

FILES = [SCRIPTS / "bench_gpu.py", *sorted((SCRIPTS / "peers").glob("gpu_*.py"))]
ROLLOUT = {"stage": "rollout", "what": "rollout warm", "laps": [[1, 0.5], [65, 1.0], [129, 2.0]]}
PEER = {"stage": "peer", "what": "generate", "laps": [[1, 0.5], [65, 6.0]]}


def test_a_decode_step_reads_weights_prompts_and_caches_once():
    """Hand-worked: keys and values of a token in all layers, for each prompt's tokens and each slot's places."""
    token = 2 * 2 * QWEN2.layers * QWEN2.kv_heads * QWEN2.head_dim
    sizes = dict(size=24, length=10, itemsize=2)
    one, four = (gpu_worker.step_work(QWEN2, layout, **sizes) for layout in (Layout(2, 4), Layout(4, 2)))
    weights = 2 * gpu_worker.arithmetic.count(gpu_worker.decoder.shapes(QWEN2))
    assert one.moved == weights + token * (2 * 10 + 8 * 24)
    assert four.moved - one.moved == token * 2 * 10 and four.flops == one.flops
    assert one.seconds(Chip(1e30, 10.0, 0), 1) == one.moved / 10


def test_shares_of_a_card_that_is_known(monkeypatch):
    """Hand-worked. Of another card there is no peak, and the share is of what was measured alone."""
    kinds = iter(["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "cpu"])
    monkeypatch.setattr(gpu_bench.jax, "devices", lambda: [SimpleNamespace(device_kind=next(kinds))])
    found = [gpu_bench.of_peak(378e12, Chip(756e12, 1.0, 0)) for _ in range(3)]
    assert [each["mfu"] for each in found] == [0.3822, 0.5, None]
    assert all(each["of_product"] == 0.5 and each["tflops"] == 378.0 for each in found)


def test_kernels_of_a_trace():
    """Hand-worked: two streams, 10 of 20 ns with a kernel; names without numbers; other lines do not count."""

    def event(name, start, duration):
        return SimpleNamespace(name=name, start_ns=start, duration_ns=duration)

    streams = [
        SimpleNamespace(name="Stream #1(Compute)", events=[event("gemm_12", 100, 6), event("gemm_7(int)", 116, 4)]),
        SimpleNamespace(name="Stream #2(Copy)", events=[event("copy", 102, 4)]),
        SimpleNamespace(name="XLA Ops", events=[event("while", 0, 1000)]),
    ]
    planes = [SimpleNamespace(name="/device:GPU:0", lines=streams), SimpleNamespace(name="/host:CPU", lines=streams)]
    assert gpu_bench.kernels(planes) == {"busy": 0.5, "kernels": {"gemm": 0.714, "copy": 0.286}, "launches": 3}
    assert gpu_bench.kernels([]) == {}


def test_the_ratio_is_taken_where_both_were():
    """Hand-worked: at 65 tokens of each response, 6 s for 1."""
    assert bench_gpu.ratio([ROLLOUT, PEER]) == (65, 6.0)
    assert bench_gpu.ratio([ROLLOUT]) is None
    assert bench_gpu.ratio([ROLLOUT, PEER | {"laps": [[7, 1.0]]}]) is None


def test_targets_take_the_lowest_share_of_decode_and_the_best_of_the_gradient():
    """Semantics: what was not measured, or has no share, is left out; the flags' decode steps do not count."""
    decode = [
        {"stage": stage, "what": "decode", "of_bound": share} for stage, share in (("decode", 0.4), ("flags", 0.1))
    ]
    updates = [{"stage": "update", "what": "update", "mfu": share} for share in (0.3, 0.36, None)]
    found = bench_gpu.reached([*decode, decode[0] | {"of_bound": 0.35}, *updates])
    assert found == {"of the bound in decode": 0.35, "MFU in the gradient": 0.36}


def test_the_table_has_what_was_timed_what_failed_and_the_targets():
    """Semantics: a figure that a record lacks leaves its place empty."""
    decode = {
        "stage": "decode",
        "what": "decode",
        "places": 768,
        "tokens_s": 51_200,
        "of_bound": 0.456,
        "peak_gb": 20.1,
    }
    broken = {"stage": "update", "what": "update", "failed": "RuntimeError: no memory"}
    text = bench_gpu.table([decode, broken, ROLLOUT, PEER])
    assert [line.split() for line in text.splitlines() if line.startswith("decode")] == [
        ["decode", "places=768", "51200", "20.1", "46%"]
    ]
    assert "RuntimeError: no memory" in text and "at 65 tokens of each response: 6.00" in text
    assert bench_gpu.failures([decode, broken]) == [broken]


def test_figures_of_the_quickstart():
    """Semantics: the first and the last score, and the last step's seconds."""
    rows = [
        {"eval/data/avg@16": 0.25, "eval/data/strict_avg@16": 0.1, "eval/held_out/avg@16": 0.2},
        {"time/sample": 9.0},
        {"time/sample": 0.5},
    ]
    rows.append({"eval/data/avg@16": 0.75})
    assert bench_gpu.quickstart_figures(rows) == {"first_avg": 0.25, "last_avg": 0.75, "sample_s": 0.5}


def test_a_stage_that_fails_or_takes_too_long_is_a_result(tmp_path):
    """Semantics: with real processes; what a stopped one wrote last is kept."""
    run = bench_gpu.Run(tmp_path, True, sys.executable, 1.0, 0.0, tmp_path)
    assert run.wait("env", [sys.executable, "-c", "print('so far'); raise SystemExit(3)"], 60, {}) == 3
    assert run.wait("decode", [sys.executable, "-c", "print('here'); import time; time.sleep(600)"], 3, {}) is None
    run.stage("update")  # the time of all stages is over
    first, second, third = bench_gpu.read(run.results)
    assert (first["what"], first["why"], first["last"]) == ("broken", "exit code 3", "so far")
    assert (second["what"], second["last"]) == ("unfinished", "here")
    assert (third["stage"], third["what"]) == ("update", "skipped")
    assert bench_gpu.failures([first, second, third]) == [first]


def test_without_torch_the_peer_is_skipped(tmp_path):
    """Semantics: with a sentence, and not as a failure."""
    run = bench_gpu.Run(tmp_path, True, str(tmp_path / "python"), 1.0, 0.0, tmp_path)
    run.peer("peer", 60)
    (record,) = bench_gpu.read(run.results)
    assert record["what"] == "skipped" and "no torch and transformers" in record["why"]
    assert not bench_gpu.failures([record])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.slow
def test_a_tiny_run_on_the_cpu(tmp_path):
    """Semantics: the stages that end soon, from the shell to the table."""
    command = [sys.executable, str(SCRIPTS / "bench_gpu.py"), "--out", str(tmp_path), "--tiny", "--seconds=1680"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*command, "--stages=env,attention,decode"], env=environment, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    by_stage = {stage: [r for r in records if r["stage"] == stage] for stage in ("env", "attention", "decode")}
    assert {"machine", "product", "product of ours", "copy"} == {r["what"] for r in by_stage["env"]}
    *decodes, one, other = by_stage["attention"]
    assert all(max(r["errors_of_dq_dk_dv_out"]) < 0.01 for r in (one, other))
    assert len(decodes) == 4 and all(max(r["mixed_error"], r["full_error"]) < 0.01 for r in decodes)
    compiled, *steps = by_stage["decode"]
    assert compiled["programs"] == 2 and [r["places"] for r in steps] == [40, 80, 120, 160]
    assert all(r["busy"] == 8 and r["steps"] == 64 and r["of_bound"] > 0 and r["compile_s"] == 0 for r in steps)
    assert "of the bound in decode" in done.stdout

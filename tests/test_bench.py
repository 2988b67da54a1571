"""Semantics and hand-worked: the benchmarks' log, turns, ratios and arithmetic, and lengths that are forced."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import LLAMA, QWEN2, random_params

SCRIPTS = Path(__file__).parent.parent / "scripts" / "peers"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent)]

import bench  # noqa: E402
import bench_settings  # noqa: E402
import ours_worker  # noqa: E402
import worker  # noqa: E402

from ttrl_jax.model import decoder  # noqa: E402
from ttrl_jax.records import Prompts  # noqa: E402
from ttrl_jax.rollout import decoding  # noqa: E402
from ttrl_jax.rollout import sampler as module  # noqa: E402
from ttrl_jax.rollout.sampling import Sampling  # noqa: E402
from ttrl_jax.rollout.shapes import Shapes  # noqa: E402

SHAPE = {"prompts": 1, "votes": 4, "rows": 512}
# A worker that appends the side's name to a file for each run, and claims as many tokens as runs.
WORKER = """
import sys
sys.path.insert(0, {scripts!r})
import worker

def make(shape):
    count = 0
    def run():
        nonlocal count
        count += 1
        with open(shape["order"], "a") as file:
            file.write(sys.argv[1])
        return {{"tokens": count}}
    return run

worker.serve({{"rollout": make}}, versions={{}}, compiling=lambda: 0.5)
"""


@pytest.fixture
def sides(tmp_path):
    script = tmp_path / "side.py"
    script.write_text(WORKER.format(scripts=str(SCRIPTS)))
    return {name: [sys.executable, str(script), name] for name in "ab"}


def test_sides_take_turns_and_what_is_logged_is_not_done_again(sides, tmp_path):
    """Semantics: with real processes. A line that was cut short is made again."""
    order, path = tmp_path / "order", tmp_path / "log.jsonl"
    shape = SHAPE | {"order": str(order)}
    bench.measure("rollout", shape, sides, bench.Log(path), repeats=2)
    assert order.read_text() == "abba"
    path.write_text(path.read_text()[:-5])  # the last: a's second run
    log = bench.Log(path)
    assert len(log.records) == 3 and path.read_text().count("\n") == 3
    bench.measure("rollout", shape, sides, log, repeats=3)
    assert order.read_text() == "abba" + "a" + "ab"
    found = bench.Log(path).find("rollout", shape, "a")
    assert {i: run["tokens"] for i, run in found.items()} == {0: 1, 1: 1, 2: 2}
    assert all(run["seconds"] > 0 and run["compile_seconds"] == 0.5 for run in found.values())
    assert bench.Log(path).find("rollout", shape | {"votes": 5}, "a") == {}


def test_another_checkout_is_a_side(tmp_path, monkeypatch, capsys):
    """Its worker, by the same Python; a folder without one is refused."""
    worker_there = tmp_path / "then" / bench.WORKER
    worker_there.parent.mkdir(parents=True)
    worker_there.touch()
    given = ["bench", "--out", str(tmp_path / "log.jsonl"), "--model", "folder", "--before"]
    monkeypatch.setattr(sys, "argv", [*given, str(tmp_path / "then")])
    sides = bench.commands(bench.parse("", peers=("hf",)))
    assert list(sides) == ["ours", "before", "peak"]
    assert sides["before"] == [sys.executable, str(worker_there), "folder"]
    monkeypatch.setattr(sys, "argv", [*given, str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        bench.parse("", peers=("hf",))
    assert ended.value.code == 2 and "--before takes a checkout that has" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rollout --shapes long --draws sample", "step"])
def test_our_side_runs(name, tmp_path):
    """Semantics: tiny shapes and a tiny model, which may have longer rows than it was made for, alone."""
    model = tmp_path / "model"
    shutil.copytree(SCRIPTS.parent.parent / "configs" / "turkish_model", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    script, *flags = name.split()
    command = [sys.executable, f"bench_{script}.py", *flags, "--quick", "--repeats", "1", "--dtypes", "float32"]
    command += ["--model", str(model), "--out", str(tmp_path / "log.jsonl")]
    done = subprocess.run(command, cwd=SCRIPTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["results"]
    assert found and all(of["ours"]["tokens_per_s"] > 0 for of in found.values())


def test_a_worker_that_ends_is_one_sentence(tmp_path):
    """Semantics: with the exit code, and the file that holds what it printed."""
    lost = bench.Worker("lost", [sys.executable, "-c", "import sys; sys.exit('gone')"], tmp_path / "log.jsonl")
    with pytest.raises(SystemExit, match=r"^lost ended with exit code 1; see .*log\.lost\.txt$"):
        lost.prepare("rollout", SHAPE)
    assert lost.printed.read_text() == "gone\n"


def record(side, repeat, tokens, seconds, **more):
    """A run as the log has it."""
    given = {"bench": "rollout", "shape": SHAPE, "side": side, "repeat": repeat, "tokens": tokens, "seconds": seconds}
    return given | {"compile_seconds": 1.0, "peak_gb": 1.0, "others": 0.0, "versions": {}} | more


def test_summary(tmp_path):
    """Hand-worked: ratios of pairs and their median; shares of what the machine does at best."""
    log = bench.Log(tmp_path / "log.jsonl")
    for repeat, (ours, theirs) in enumerate([(1.0, 4.0), (2.0, 2.0), (4.0, 2.0)]):
        log.add(record(bench.OURS, repeat, 100, ours, slot_steps=200))
        log.add(record("hf", repeat, 100, theirs, slot_steps=400))
        peak = {"gflops": 50.0 + repeat, "copy_gb_s": 10.0, "weights_gb": 0.2}
        log.add(record(bench.PEAK, repeat, 0, 1.0, **peak))
    found = bench.summary("rollout", SHAPE, [bench.OURS, "hf", bench.PEAK], log, repeats=3, flops=1.02e10)
    assert found["hf"]["ratio"] == 1.0  # the median of 4, 1 and 0.5, and not that of medians
    assert found[bench.OURS]["tokens_per_s"] == 50.0 and found[bench.OURS]["range"] == [25.0, 100.0]
    assert found[bench.OURS]["useful"] == 0.5 and found["hf"]["useful"] == 0.25
    assert found[bench.OURS]["gflops"] == 5.1 and found[bench.OURS]["of_dots"] == 0.1
    # 200 row-steps of 4 rows are 50 steps, each of which reads 0.2 GB, in 2 s: 5 GB/s of 10.
    assert found[bench.OURS]["of_copy"] == 0.5
    assert len(bench.table(found).splitlines()) == 4
    first = bench.summary("rollout", SHAPE, [bench.OURS, "hf"], log, repeats=1, flops=1.0)
    assert first["hf"]["ratio"] == 4.0 and first["hf"]["runs"] == 1


def test_ratio_needs_pairs():
    """Semantics: runs of one side alone do not count."""
    ours = {0: {"tokens": 10, "seconds": 1.0}, 2: {"tokens": 30, "seconds": 1.0}}
    theirs = {1: {"tokens": 10, "seconds": 1.0}, 2: {"tokens": 10, "seconds": 1.0}}
    assert bench.ratio(ours, theirs) == 3.0
    assert np.isnan(bench.ratio(ours, {1: theirs[1]}))


def test_flops_count_every_matrix_once():
    """Slow twin: against the parameters themselves, and attention by hand."""
    shapes = decoder.shapes(LLAMA)
    matrices = sum(leaf.size for leaf in jax.tree.leaves(shapes["blocks"]) if leaf.ndim > 2)  # norms are [L, D]
    assert bench.token_flops(LLAMA, context=0, head=False) == 2 * matrices
    assert bench.token_flops(LLAMA, context=0, head=True) == 2 * (matrices + shapes["embed"].size)
    # Scores and values: 2 layers x 4 heads of 6 x 10 tokens, 2 x 2 for each.
    assert bench.token_flops(LLAMA, context=10, head=False) - 2 * matrices == 4 * 2 * 4 * 6 * 10
    one = bench.rollout_flops(LLAMA, prompt_tokens=0, lengths=[[1]])
    assert bench.rollout_flops(LLAMA, prompt_tokens=0, lengths=[[1, 1], [1, 1]]) == 4 * one


def test_forced_lengths(monkeypatch):
    """Semantics: the sampler ends every response where it is told, and nowhere else, also in batches."""
    lengths = np.array([[1, 9, 12, 4, 4], [12, 2, 3, 1, 7]])
    uids, key = np.array([5, 2**32 - 1], np.uint32), jax.random.key(3)
    monkeypatch.setattr(decoding, "pick", ours_worker.ending(decoding.pick, ours_worker.ends(key, uids, lengths)))
    sampler = module.Sampler(
        QWEN2,
        dtype=jnp.float32,
        shapes=Shapes(rows=4, max_tokens=12, prefill_tokens=1000, prompt_multiple=1, vote_multiple=1),
        stop_ids=(ours_worker.STOP,),
        announce=lambda *told: None,
    )
    weights = decoder.sampling_weights(jax.tree.map(jnp.asarray, random_params(QWEN2)), QWEN2, jnp.float32)
    prompts = Prompts(np.array([[4, 5, 6], [7, 8, 9]], np.int32), np.array([3, 2], np.int32), uids)
    drawn = sampler(weights, prompts, key, votes=5, sampling=Sampling(), progress=lambda *done: None)
    np.testing.assert_array_equal(drawn.lengths, lengths)


def test_majority_rewards():
    """Hand-worked: the last number votes, prompt by prompt; without any there is no reward."""
    prompts = ["a", "a", "a", "b", "b"]
    texts = ["is 4", "1, so 4", "it is 5", "none", "no number"]
    assert worker.majority_rewards(prompts, texts) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_turns():
    """Semantics: a trainer makes a step when asked; what it raises is raised where it was asked."""
    done = []

    def train(turns):
        for step in range(3):
            turns.begin()
            if step == 2:
                raise ValueError("no third step")
            done.append(step)
            turns.end()

    turns = worker.Turns(train)
    turns()
    assert done == [0]
    turns()
    assert done == [0, 1]
    with pytest.raises(ValueError, match="no third step"):
        turns()


def test_nested_compiles_count_once():
    """Hand-worked: a compile that was reported after the ones within it replaces them."""
    compiles = worker.JaxCompiles(jax)
    end = worker.time.perf_counter()
    compiles._spans = [(end - 9.0, end - 8.0), (end - 3.0, end - 2.0), (end - 1.5, end - 1.0)]
    compiles._listen("/jax/core/compile/backend_compile_duration", 4.0)
    compiles._listen("/jax/other", 100.0)
    assert compiles() == pytest.approx(5.0, abs=1e-3)


def test_arms_of_settings(tmp_path: Path):
    arm = bench_settings.arm_of("LoRA:--config.lora.rank=16 --config.model.path='a b'")
    assert arm.name == "LoRA" and arm.flags == ("--config.lora.rank=16", "--config.model.path=a b")
    assert arm.checkout == SCRIPTS.parent.parent
    assert bench_settings.arm_of(f"now@{SCRIPTS.parent.parent}") == bench_settings.arm_of("now")
    with pytest.raises(ValueError, match=f"{tmp_path} of the arm 'before' is no checkout"):
        bench_settings.arm_of(f"before@{tmp_path}")


def test_seconds_of_a_step(tmp_path: Path):
    """Hand-worked: the two steps that compile are left out, and so are rows of evaluations."""
    parts = [(9.0, 9.0, 9.0), (9.0, 9.0, 9.0), (1.0, 0.5, 2.0), (2.0, 0.5, 4.0), (3.0, 0.5, 9.0)]
    rows = [dict(zip(("time/sample", "time/vote", "time/update"), each, strict=True)) for each in parts]
    rows.insert(3, {"eval/avg@16": 0.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = bench_settings.seconds(tmp_path)
    assert found == {"sample": [1.0, 2.0, 3.0], "vote": [0.5] * 3, "update": [2.0, 4.0, 9.0], "step": [3.5, 6.5, 12.5]}
    half = {name: [x / 2 for x in each] for name, each in found.items()}
    assert bench_settings.table([("a", found), ("b", half)]).splitlines()[2:] == [
        "| a | 2.000 s, 1.00 | 0.500 s, 1.00 | 4.000 s, 1.00 | 6.500 s, 1.00 | 3 |",
        "| b | 1.000 s, 0.50 | 0.250 s, 0.50 | 2.000 s, 0.50 | 3.250 s, 0.50 | 3 |",
    ]

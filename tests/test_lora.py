"""Slow twin and semantics: adapters beside a base compute what merged weights compute, in every program, and alone have
gradients. Pulse: a run with LoRA, resumed, evaluated, exported both ways."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finished_run import results
from safetensors.numpy import load_file, save_file
from test_update import LOSS, TEMPERATURE, make_batch
from tiny_model import LLAMA, QWEN2, QWEN3, all_logits, on_mesh, random_params

from ttrl_jax import cli, commands, export, train
from ttrl_jax.errors import InputError
from ttrl_jax.learn import microbatch
from ttrl_jax.learn.logprobs import response_logprobs
from ttrl_jax.model import decoder, int8, layers, lora, peft, weights
from ttrl_jax.model.config import PROJECTIONS, Lora
from ttrl_jax.model.sharding import shardings
from ttrl_jax.rollout import copies

ROOT = Path(__file__).parent.parent
CONFIGS = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3}
# remat, and layers apart in place of a loop
WAYS = [("none", False), ("dots", False), ("full", False), ("none", True), ("full", True)]


def with_adapters(config, *, targets=tuple(PROJECTIONS), rank=3, alpha=6.0, base="dtype"):
    return dataclasses.replace(config, lora=Lora(rank, alpha / rank, targets, base))


def random_adapters(config, *, seed: int = 0):
    """Both parts from a normal distribution, so that their product is far from zero (host arrays)."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda like: np.float32(0.3 * rng.normal(size=like.shape)), lora.shapes(config))


def base_of(params, config):
    return jax.tree.map(jnp.asarray, decoder.sampling_weights(jax.tree.map(jnp.asarray, params), config, jnp.float32))


def merged(params, adapters, config):
    """Weights with scale * A B in them, by the definition, one product after the other."""
    blocks = jax.tree.map(np.array, params["blocks"])
    for room, pairs in adapters["lora"].items():
        for name, pair in pairs.items():
            inputs = pair["a"].ndim - 2
            product = [np.tensordot(a, b, 1) for a, b in zip(pair["a"], pair["b"], strict=True)]
            assert product[0].shape == blocks[room][name].shape[1:] and inputs == 1 + (name == "o")
            blocks[room][name] += np.float32(config.lora.scale) * np.stack(product)
    return {**params, "blocks": blocks}


@pytest.mark.parametrize("name", CONFIGS)
def test_adapters_beside_the_base_are_those_in_its_weights(name):
    """The training forward, with and without remat, prefill and decode."""
    config = with_adapters(CONFIGS[name])
    params, adapters = random_params(config), random_adapters(config)
    want_params = merged(params, adapters, config)
    ids = np.random.default_rng(1).integers(config.vocab, size=(3, 12))
    want = all_logits(jax.tree.map(jnp.asarray, want_params), dataclasses.replace(config, lora=None), ids)
    assert np.abs(want - all_logits(jax.tree.map(jnp.asarray, params), config, ids)).max() > 0.1
    base = base_of(params, config)
    for remat, unroll in WAYS:
        way = dict(dtype=jnp.float32, remat=remat, unroll=unroll)
        hidden = jax.jit(partial(decoder.forward, config=config, **way))({**base, **adapters}, ids=ids)
        np.testing.assert_allclose(decoder.logits(base, config, hidden), want, rtol=2e-5, atol=2e-5)
    sampling = {**base, **lora.sampling_adapters(adapters, config, jnp.float32)}
    lengths = np.array([12, 7, 9], np.int32)
    _, last = jax.jit(partial(decoder.prefill, config=config))(sampling, ids=ids, lengths=lengths)
    np.testing.assert_allclose(last, want[np.arange(3), lengths - 1], rtol=2e-5, atol=2e-5)


def test_new_adapters_change_nothing_and_are_those_of_the_seed():
    config = with_adapters(QWEN2)
    made = lora.init(config, seed=3)
    for room, name, inputs in PROJECTIONS.values():
        a, b = made["lora"][room][name]["a"], made["lora"][room][name]["b"]
        bound = 1 / np.sqrt(np.prod(a.shape[1 : 1 + inputs]))
        assert not b.any() and a.dtype == b.dtype == np.float32
        assert 0.9 * bound < np.abs(a).max() <= bound and abs(a.std() / bound - 1 / np.sqrt(3)) < 0.1
    again, other = lora.init(config, seed=3), lora.init(config, seed=4)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, made, again)))
    assert not np.array_equal(made["lora"]["ffn"]["up"]["a"], other["lora"]["ffn"]["up"]["a"])
    assert not np.array_equal(made["lora"]["ffn"]["up"]["a"], made["lora"]["ffn"]["gate"]["a"])
    ids, params = np.arange(12)[None], random_params(config)
    base = base_of(params, config)
    with_them, without = (
        decoder.forward({**base, **more}, config, ids, dtype=jnp.float32, remat="none") for more in (made, {})
    )
    assert np.array_equal(with_them, without)


def test_a_first_step_goes_the_way_of_the_weight_s_own():
    """Hand-worked: A square and orthogonal, B = 0, plain SGD: A (-rate dB) = -rate scale A A^T dW = -rate scale dW."""
    rng = np.random.default_rng(0)
    a, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    x, w, slope = (rng.normal(size=shape) for shape in ((7, 5), (5, 4), (7, 4)))
    x, w, a, slope = (jnp.asarray(y, jnp.float32) for y in (x, w, a, slope))
    scale = 1.5

    def loss(pair):
        return (layers.adapted(x, (w,), (pair,), scale)[0] * slope).sum()

    of_a, of_b = jax.grad(loss)((a, jnp.zeros((5, 4))))
    np.testing.assert_allclose(scale * a @ of_b, scale**2 * x.T @ slope, rtol=1e-5, atol=1e-5)
    assert not np.asarray(of_a).any()  # B is zero


def test_a_small_product_is_not_lost_beside_a_large_one():
    """256.9 + 0.5 = 257.4 rounds to 258 in bfloat16; 256.9 alone rounds to 256, and with 0.5 stays there."""
    bf16 = jnp.bfloat16
    x, w = jnp.ones((1, 2), bf16), jnp.array([[256.0], [0.8984375]], bf16)
    pair = jnp.array([[0.5], [0.0]], bf16), jnp.ones((1, 1), bf16)
    assert layers.product(x, w)[0, 0] == 256
    assert layers.product(x, w)[0, 0] + bf16(0.5) == 256
    assert layers.adapted(x, (w,), (pair,), 1.0)[0][0, 0] == 258


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_merged_weights(name):
    """By the chain rule from the weights' gradients: dA = scale dW B^T, dB = scale A^T dW; and the base has none."""
    config = with_adapters(CONFIGS[name])
    params, adapters = random_params(config), random_adapters(config)
    batch, advantages = make_batch(config)
    sizes = dict(shards=1, tokens=10_000, chunk=1000, full=8, longest=18)
    micro = microbatch.micro_batches(batch, np.arange(8), **sizes)[0]
    micro, factor = jax.tree.map(jnp.asarray, (micro, micro.take(advantages)))

    def loss(whole, **way):
        way |= dict(temperature=TEMPERATURE, dtype=jnp.float32, entropy_gradient=True)
        logps, entropies = response_logprobs(whole, config, micro, **way)
        return (factor * logps + LOSS.entropy_coef * micro.mask * entropies).sum()

    def gradient(**way):
        return jax.jit(jax.grad(lambda own: loss({**base, **own}, table_gradient=False, **way)))(adapters)

    base = base_of(params, config)
    got = gradient(remat=True, unroll=True)
    for remat, unroll in WAYS[:4] if name == "qwen3" else ():  # whose layers differ
        others = zip(*map(jax.tree.leaves, (got, gradient(remat=remat, unroll=unroll))), strict=True)
        assert all(np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(x) for x, y in others), (remat, unroll)
    plain = jax.tree.map(jnp.asarray, merged(params, adapters, config))
    of_weights = jax.jit(jax.grad(lambda whole: loss(whole, remat="full")))(plain)["blocks"]
    for room, of_names in got["lora"].items():
        for leaf, pair in of_names.items():
            own, slope = adapters["lora"][room][leaf], np.asarray(of_weights[room][leaf])
            count, rank = len(slope), config.lora.rank
            a, b = own["a"].reshape(count, -1, rank), own["b"].reshape(count, rank, -1)
            slope = slope.reshape(count, a.shape[1], b.shape[2])
            want = {
                "a": config.lora.scale * slope @ b.swapaxes(1, 2),
                "b": config.lora.scale * a.swapaxes(1, 2) @ slope,
            }
            for part in "ab":
                found = np.asarray(pair[part]).reshape(want[part].shape)
                assert np.linalg.norm(want[part]) > 1e-3, (room, leaf, part)
                assert np.linalg.norm(found - want[part]) <= 2e-5 * np.linalg.norm(want[part]), (room, leaf, part)


def test_some_targets_leave_the_others_alone():
    config = with_adapters(LLAMA, targets=("q_proj", "down_proj"))
    params, adapters = random_params(config), random_adapters(config)
    assert {room: set(pairs) for room, pairs in adapters["lora"].items()} == {"attention": {"q"}, "ffn": {"down"}}
    ids = np.arange(8)[None]
    want = all_logits(jax.tree.map(jnp.asarray, merged(params, adapters, config)), LLAMA, ids)
    base = base_of(params, config)
    hidden = decoder.forward({**base, **adapters}, config, ids, dtype=jnp.float32, remat="none")
    np.testing.assert_allclose(decoder.logits(base, config, hidden), want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)])
@pytest.mark.parametrize("held", ["dtype", "int8"])
def test_a_mesh_changes_nothing(shape, held):
    """Adapters split over fsdp and tensor, the base over tensor alone: logits as on one device."""
    config = with_adapters(LLAMA, base=held)
    params, adapters = random_params(config), random_adapters(config)
    ids = np.random.default_rng(1).integers(config.vocab, size=(8, 12))

    def logits(on):
        with on_mesh(on) as mesh:
            layout = copies.base_layout(config, mesh, jnp.float32)
            tensors = {name: Lazy(tensor) for name, tensor in weights.to_huggingface(params, config).items()}
            base = weights.base_of(tensors, config, layout)
            own = jax.device_put(adapters, shardings(lora.logical_axes(config), lora.shapes(config), mesh))
            hidden = jax.jit(partial(decoder.forward, config=config, dtype=jnp.float32, remat="full"))(
                {**base, **own}, ids=ids
            )
            for one, like in zip(jax.tree.leaves(base), jax.tree.leaves(layout), strict=True):
                assert one.sharding == like.sharding and one.dtype == like.dtype and one.shape == like.shape
            return np.asarray(decoder.logits(base, config, hidden))

    np.testing.assert_allclose(logits(shape), logits((1, 1, 1)), rtol=2e-5, atol=2e-5)


class Lazy:
    """A tensor as safetensors opens it."""

    def __init__(self, values):
        self.values = values

    def __getitem__(self, index):
        return self.values[index]


def test_eight_bits_are_the_nearest_of_255():
    weight = np.array([[1.0, -0.2, 0.0], [-0.5, 0.1003, 0.0]], np.float32)
    found = int8.quantised(weight, inputs=1)
    assert found.codes.tolist() == [[127, -127, 0], [-64, 64, 0]] and found.codes.dtype == np.int8
    np.testing.assert_allclose(found.scales, [1 / 127, 0.2 / 127, 0])
    for room, name, inputs in PROJECTIONS.values():
        weight = random_params(LLAMA)["blocks"][room][name][0]
        found = int8.quantised(weight, inputs=inputs)
        assert found.scales.shape == weight.shape[inputs:]
        apart = np.abs(np.asarray(int8.plain(found, jnp.float32)) - weight)
        assert (apart <= found.scales * 0.5001).all() and apart.max() > 0


# ---------------------------------------------------------------------- PEFT's folder


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_is_read_as_it_was_written(tmp_path, name):
    config = with_adapters(CONFIGS[name], targets=("q_proj", "o_proj", "up_proj"), rank=2, alpha=5.0)
    adapters = random_adapters(config)
    peft.write(tmp_path, adapters, config, base="some/model")
    found, again = peft.read(tmp_path, CONFIGS[name])
    assert (found.rank, found.scale, found.targets) == (2, 2.5, ("q_proj", "o_proj", "up_proj"))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, adapters, again)))
    tensors = load_file(tmp_path / peft.WEIGHTS)
    module = "base_model.model.model.layers.1.self_attn.q_proj"
    a = adapters["lora"]["attention"]["q"]["a"][1]
    assert np.array_equal(tensors[f"{module}.lora_A.weight"], a.T)
    assert tensors[f"{module}.lora_B.weight"].shape == (config.heads * config.head_dim, 2)
    assert json.loads((tmp_path / peft.CONFIG).read_text())["target_modules"] == ["q_proj", "o_proj", "up_proj"]


def test_merged_tensors_are_merged_weights():
    config = with_adapters(QWEN3)
    params, adapters = random_params(config), random_adapters(config)
    want = weights.to_huggingface(merged(params, adapters, config), config)
    more, plain = peft.deltas(adapters, config), weights.to_huggingface(params, config)
    assert set(more) < set(want) and len(more) == 7 * config.layers
    for name, tensor in want.items():
        np.testing.assert_allclose(plain[name] + (more[name]() if name in more else 0), tensor, atol=1e-6)


def folder_with(tmp_path, *, fields=None, tensors=None):
    config = with_adapters(LLAMA, targets=("q_proj",))
    peft.write(tmp_path, random_adapters(config), config, base="some/model")
    path = tmp_path / peft.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | (fields or {})))
    if tensors:
        found = load_file(tmp_path / peft.WEIGHTS)
        save_file(tensors(found), tmp_path / peft.WEIGHTS)
    return tmp_path


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("fields", "tensors", "words"),
    [
        ({"use_dora": True}, None, "use_dora=True, which is not computed here"),
        ({"target_modules": ["v_proj"]}, None, r"target_modules=\['v_proj'\], and the weights are of q_proj"),
        (None, lambda t: t | {Q0: np.full_like(t[Q0], np.nan)}, "numbers that are not finite"),
        ({"rank_pattern": {"q_proj": 4}}, None, "rank_pattern"),
        ({"peft_type": "IA3"}, None, "should be a LoRA adapter with a rank and an alpha, got"),
        ({"r": "8"}, None, "should be a LoRA adapter"),
        (None, lambda t: {n: x for n, x in t.items() if n != Q0}, "lora_A of q_proj in layer 0 is nothing"),
        (None, lambda t: t | {Q0: np.zeros((3, 7), np.float32)}, r"is \[3, 7\], expected \[3, 16\]"),
        (None, lambda t: t | {Q0.replace(".0.", ".5."): t[Q0]}, "has layer 5 of 2"),
        (None, lambda t: t | {Q0.replace("q_proj", "embed"): t[Q0]}, "adapts .*embed.lora_A; only q_proj"),
    ],
)
def test_other_adapters_are_one_sentence(tmp_path, fields, tensors, words):
    with pytest.raises(InputError, match=words):
        peft.read(folder_with(tmp_path, fields=fields, tensors=tensors), LLAMA)


def test_rank_stabilised_adapters_have_another_scale(tmp_path):
    found, _ = peft.read(folder_with(tmp_path, fields={"use_rslora": True, "lora_alpha": 6}), LLAMA)
    assert found.scale == pytest.approx(6 / np.sqrt(3))


# ---------------------------------------------------------------------- runs

ARGUMENTS = [
    f"--config={ROOT / 'configs' / 'quickstart_sums.py'}", "--config.eval.tasks=()", "--config.data.limit=4",
    "--config.rollout.prompts=4", "--config.rollout.votes=8", "--config.train.samples=8",
    "--config.train.micro_tokens=384", "--config.train.minibatch_prompts=4", "--config.eval.samples=2",
    "--config.train.learning_rate=1e-4", "--config.train.kl_coef=0.01", "--config.eval.every=0",
    "--config.log.tensorboard=False",
]  # fmt: skip
LORA = "--config.lora.rank=4"


def call(command: str, folder: Path, *given: str, code: int = 0) -> str:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", f"ttrl_jax.{command}", *given],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of four steps, in one piece."""
    folder = tmp_path_factory.mktemp("lora")
    printed = call("train", folder, *ARGUMENTS, LORA, "--config.episodes=4", "--workdir=run")
    assert "rank 4, alpha 32, adapters of 7 of a layer's 7 projections: 0.03 M parameters; the model's own" in printed
    assert "--out run-adapter --adapter" in printed
    assert "learning rate 0.001: lora.rate_factor=10 times train.learning_rate=0.0001" in printed
    return folder / "run"


def test_the_base_stays_and_the_adapters_learn(run):
    found = results(run)
    first, last = found["metrics"][0], found["metrics"][3]
    assert first["update/learning_rate"] == pytest.approx(1e-3)
    assert first["update/kl"] == 0 and last["update/kl"] > 0  # to the base alone
    assert first["update/grad_norm"] > 0
    size = sum(path.stat().st_size for path in (run / "checkpoints" / "4").rglob("*") if path.is_file())
    assert size < 1e6  # of 2.4 MB that the weights alone have


def test_a_run_that_goes_on_ends_as_one_in_one_piece(run, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "4")
    (again / "summary.json").unlink()
    printed = call("train", tmp_path, *ARGUMENTS, LORA, "--config.episodes=4", "--workdir=run")
    assert "resumed after step 3" in printed
    shas = [json.loads((each / "summary.json").read_text())["params_sha256"] for each in (run, again)]
    assert shas[0] == shas[1]


@pytest.mark.slow
def test_checkpoint_and_adapters_measure_as_the_run_did(run, tmp_path):
    """Evaluated from the checkpoint, whose adapters its run knows; from PEFT's folder; and from merged weights."""
    trained = export.restore(run, None, moved="", out=tmp_path / "none", itemsize=4)
    export.write_adapter(trained, tmp_path / "adapters")
    export.write(trained, tmp_path / "merged", dtype="float32", shard_bytes=10**9)
    assert "from peft import" in (tmp_path / "adapters" / "README.md").read_text()
    assert "| LoRA: rank | 4 |" in (tmp_path / "merged" / "README.md").read_text()
    after = json.loads((run / "summary.json").read_text())["after"]
    for i, given in enumerate(
        ([f"--checkpoint={run}"], ["--config.model.adapter=adapters"], ["--config.model.path=merged"])
    ):
        call("evaluate", tmp_path, *ARGUMENTS, *given, f"--out=found{i}")
        assert json.loads((tmp_path / f"found{i}" / "results.json").read_text())["results"]["data"] == after


@pytest.mark.slow
def test_a_run_begins_with_the_adapters_of_a_folder(run, tmp_path):
    """Its KL term is to them, and zero at first; another folder of adapters is refused where it goes on."""
    trained = export.restore(run, None, moved="", out=tmp_path / "none", itemsize=4)
    export.write_adapter(trained, tmp_path / "adapters")
    given = [*ARGUMENTS, "--config.model.adapter=adapters", "--config.episodes=1", "--workdir=next"]
    printed = call("train", tmp_path, *given)
    assert "lora.rank=4, as model.adapter, which was made for " in printed
    assert "which begin as adapters has them" in printed and "lora.rank=4, as model.adapter" in printed
    found = results(tmp_path / "next")
    before, after = json.loads((run / "summary.json").read_text()), found["summary"]
    assert after["before"] == before["after"] and found["metrics"][0]["update/kl"] == 0
    path = tmp_path / "adapters" / peft.WEIGHTS
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path)
    assert "the adapters in model.adapter have changed since" in call("train", tmp_path, *given, code=2)
    for key, value, own in (("rank", 8, 4), ("alpha", 16.0, 32.0)):
        said = call("train", tmp_path, *given, f"--config.lora.{key}={value}", code=2)
        assert f"lora.{key}={value}, and the adapters of adapters have {key} {own}" in said
    # Without the adapters that it began with, it would be pulled to another start.
    plain = [each for each in given if "adapter" not in each]
    assert "the adapters in model.adapter have changed" in call("train", tmp_path, *plain, LORA, code=2)


def test_another_base_is_refused(run, tmp_path):
    other = tmp_path / "model"
    shutil.copytree(ROOT / "configs" / "quickstart_model", other)
    tensors = load_file(other / "model.safetensors")
    save_file(
        {name: tensor + np.asarray(0.01, tensor.dtype) for name, tensor in tensors.items()},
        other / "model.safetensors",
        metadata={"format": "pt"},
    )
    given = [*ARGUMENTS, LORA, "--config.episodes=4", f"--config.model.path={other}", f"--workdir={run}"]
    assert "was made with another model: the weights or config" in call("train", tmp_path, *given, code=2)
    with pytest.raises(InputError, match="was made with another model"):
        export.restore(run, None, moved=str(other), out=tmp_path / "none", itemsize=4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--config.lora.rank=-1", "lora.rank must not be negative"),
        ("--config.lora.targets=('q_proj', 'embed')", "lora.targets must hold some of q_proj, "),
        ("--config.lora.targets=()", "lora.targets must hold some of"),
        ("--config.lora.base=nf4", "lora.base must be dtype or int8"),
        ("--config.lora.alpha=0", "lora.alpha must be above 0"),
        ("--config.lora.rate_factor=0", "lora.rate_factor must be above 0"),
        ("--config.lora.base=int8", "lora.base='int8' is for weights that stay as they are; set lora.rank"),
        ("--config.lora.targets=q_proj,v_proj", "as in \"--config.lora.targets=('q_proj','v_proj')\"; got"),
        ("--config.lora.rank=1600", "lora.rank=1600 is more than the 128 numbers of a state"),
        ("--config.model.adapter=/nowhere/at/all", "There is no adapter '/nowhere/at/all'"),
        (f"--config.model.adapter={ROOT / 'setup.py'}", "give the folder that it is in"),
    ],
)
def test_what_cannot_be_is_one_sentence(given, words, fresh_flags, monkeypatch, capsys):
    fresh_flags()
    monkeypatch.setattr(sys, "argv", ["train", *ARGUMENTS, given])
    arguments = commands.parse(commands.TRAIN, doc="")
    assert cli.run(train.main, commands.TRAIN, arguments=arguments) == 2
    assert words in capsys.readouterr().err

"""Semantics and invariance: what a session holds, saves and goes on from with masters and moments in bfloat16, and what
gradients to such masters lose. Slow twin: masters in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_resume import ARGUMENTS, finish, saved, start, wait_for
from test_update import ROWS, make_batch, make_update, model_of
from tiny_model import LLAMA, random_params

from configs import quickstart_sums
from tests.finished_run import results
from ttrl_jax.algorithms import credit
from ttrl_jax.check import check
from ttrl_jax.errors import InputError
from ttrl_jax.inputs import read_inputs
from ttrl_jax.learn.batch import train_batch
from ttrl_jax.learn.optimizer import make_optimizer
from ttrl_jax.model import decoder
from ttrl_jax.model.weights import sha256, to_huggingface
from ttrl_jax.programs import trained_bytes
from ttrl_jax.reward.judge import Verdict
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.session import close, encode, open_session, respond, restore, save, update

BF16 = jnp.dtype(jnp.bfloat16)
HALVES = {"train.master_dtype": "bfloat16", "train.moments_dtype": "bfloat16"}


# ---------------------------------------------------------------------- gradients


def test_gradients_of_a_table_add_up_in_float32():
    """Hand-worked: 1,000 gradients of 1 to one row. In bfloat16 sums of 1 end at 256, where 257 is none of its
    numbers, and 1,000 is one."""
    table, ids = jnp.zeros((3, 2), BF16), jnp.ones(1_000, jnp.int32)
    found = jax.grad(lambda table: decoder._rows(table, ids, jnp.float32).sum())(table)
    assert found.dtype == BF16 and found.astype(np.float32).tolist() == [[0, 0], [1_000, 1_000], [0, 0]]
    plain = jax.grad(lambda table: table[ids].astype(jnp.float32).sum())(table)
    assert float(plain[1, 0]) < 1_000


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_gradients_to_masters_in_bfloat16(remat: str):
    """Those of float32 masters that are the same numbers, added up in float32: with remat="full", where layers are
    added up in place, theirs are the same, and else within the rounding of single passes."""
    rounded = jax.tree.map(lambda x: jnp.asarray(x, BF16), random_params(LLAMA))
    whole, (rows, advantages), found = jax.tree.map(lambda x: x.astype(jnp.float32), rounded), make_batch(LLAMA), []
    for params in (whole, rounded):
        update = make_update(LLAMA, optax.identity(), minibatch=ROWS, micro=48, remat=remat, model=model_of(
            params, optax.identity()
        ))  # fmt: skip
        total = update._zeros(params)
        for micro in update.micro_batches(rows, np.arange(ROWS)):
            numbers = {"advantages": micro.take(advantages), "sampler_logps": micro.take(rows.sampler_logps)}
            total, *_ = update._gradient(params, None, update.reference, total, micro, numbers)
        assert {leaf.dtype for leaf in jax.tree.leaves(total)} == {jnp.dtype(jnp.float32)}
        found.append(total)
    errors = {"blocks": [], "norm": [], "embed": []}
    for (path, want), got in zip(jax.tree.leaves_with_path(found[0]), jax.tree.leaves(found[1]), strict=True):
        errors[path[0].key].append(np.abs(np.asarray(got - want)).max() / np.abs(np.asarray(want)).max())
    assert max(errors["norm"]) < 2**-7 and max(errors["embed"]) < 2**-6  # the table is tied: a sum of two
    assert max(errors["blocks"]) < 1e-5 if remat == "full" else 1e-4 < max(errors["blocks"]) < 2**-7


def test_steps_of_an_update_keep_the_dtypes():
    """Four steps on one batch: the same twice, and close to the twin whose masters and moments are float32."""
    settings = dict(b1=0.9, b2=0.99, weight_decay=0.01, grad_clip=0.05)
    begin = jax.tree.map(lambda x: jnp.asarray(x, BF16), random_params(LLAMA))
    found = []
    for dtype in (jnp.dtype(jnp.float32), BF16, BF16):
        optimizer = make_optimizer(**settings, moments_dtype=dtype, seed=(0,))
        model = model_of(jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), begin), optimizer)
        learner = make_update(LLAMA, optimizer, minibatch=4, micro=1000, model=model)
        rows, advantages = make_batch(LLAMA)
        model, metrics, _ = learner(model, rows, {"advantages": advantages}, 0.01)
        assert metrics["skipped"] == 0
        mu, nu = (optax.tree.get(model.optimizer, name) for name in ("mu", "nu"))
        assert {leaf.dtype for leaf in jax.tree.leaves((model.params, mu, nu))} == {dtype}
        found.append(jax.tree.map(lambda x: np.asarray(x, np.float32), model.params))
    jax.tree.map(np.testing.assert_array_equal, found[1], found[2])
    moved = jax.tree.map(lambda end, start: end - np.asarray(start, np.float32), found[0], begin)
    off = jax.tree.map(lambda end, other: other - end, found[0], found[1])
    assert 0.01 < max(np.abs(x).max() for x in jax.tree.leaves(moved)) < 0.06  # of 4 steps
    assert 0 < optax.tree.norm(off) < 0.5 * optax.tree.norm(moved)


# ---------------------------------------------------------------------- sessions


def inputs_of(algorithm: str, changes: dict):
    config = quickstart_sums.get_config()
    config.update_from_flattened_dict({
        "algorithm": algorithm, "rollout.votes": 4, "rollout.prompts": 4, "train.samples": 4, "data.limit": 8,
        "train.minibatch_prompts": 4, "episodes": 2, "eval.tasks": (), "train.learning_rate": 1e-3, **changes,
    })  # fmt: skip
    return read_inputs(config)


def one_step(session):
    """Learn from the same texts each time."""
    problems = session.problems.take(0)
    rollouts = respond(session, [[rf"71 + 25 = \boxed{{{answer}}}" for answer in (96, 90, 86, 96)]] * len(problems))
    rows = train_batch(encode(session, problems), rollouts, np.tile(np.arange(4), (len(problems), 1)))
    nothing, rewards = [None] * len(problems), np.tile(np.float32([1, 0, 0, 1]), (len(problems), 1))
    verdict = Verdict(nothing, nothing, rewards, np.ones(len(problems), np.float32), np.zeros_like(rewards))
    session, advantages, _ = credit(session, rows, verdict)
    return update(session, rows, {"advantages": advantages})[0]


def numbers(tree) -> list[np.ndarray]:
    return [np.array(leaf, np.float32) for leaf in jax.tree.leaves(tree)]  # copies


def dtypes(tree) -> set:
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize("algorithm", ["grpo", pytest.param("ppo", marks=pytest.mark.slow),
                                       pytest.param("prime", marks=pytest.mark.slow)])  # fmt: skip
def test_a_session_goes_on_bit_by_bit(tmp_path, algorithm: str):
    """Three steps at once, or one and two after a checkpoint, which keeps the dtypes; all models that are trained have
    them, but for a critic's head, which is a row of numbers. Who samples alone gets the same weights."""
    inputs = inputs_of(algorithm, HALVES)
    session = open_session(inputs, say=lambda line: None)
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        session = one_step(session)
        save(session, checkpoints)
        checkpoints.wait()
        first = sha256(session.state.policy.params)
        session = one_step(one_step(session))
        want, layout = numbers(session.state), session.layout
        close(session)
        again = restore(open_session(inputs, say=lambda line: None, begin=False), checkpoints, 1)
        assert sha256(again.state.policy.params) == first
        again = one_step(one_step(again))
        jax.tree.map(np.testing.assert_array_equal, numbers(again.state), want)
        models = again.state.models
        assert jax.tree.map(lambda x: x.dtype, again.state) == jax.tree.map(lambda x: x.dtype, layout)
        for model in models.values():
            mu, nu = (optax.tree.get(model.optimizer, name) for name in ("mu", "nu"))
            trained = {name: leaf for name, leaf in model.params.items() if model is models["policy"] or name != "head"}
            assert dtypes((trained, mu, nu)) == {BF16}
        if algorithm == "ppo":
            assert dtypes(models["critic"].params["head"]) == {jnp.dtype(jnp.float32)}
        counted = sum(leaf.nbytes for leaf in jax.tree.leaves(again.state))
        assert trained_bytes(inputs.config, inputs.model) == pytest.approx(counted, rel=0.02)
        close(again)
        plain = quickstart_sums.get_config()
        reader = restore(
            open_session(read_inputs(plain, training=False), say=lambda line: None, begin=False), checkpoints, 1
        )
        assert sha256(reader.state.policy.params) == first and dtypes(reader.state.policy.params) == {BF16}
        assert {x.dtype for x in to_huggingface(reader.state.policy.params, inputs.model).values()} == {np.dtype("f4")}
        close(reader)


@pytest.mark.slow
def test_a_run_goes_on_bit_by_bit(tmp_path):
    """The real command, stopped by a signal after its second step, and started again."""
    assert "--config.train.learning_rate=4e-5" in ARGUMENTS
    alone, workdir = tmp_path / "alone", tmp_path / "run"
    change = (*(f"--config.{key}={value}" for key, value in HALVES.items()), "--config.episodes=6")
    finish(alone, *change)
    process = start(workdir, *change)
    wait_for(lambda: "2" in saved(workdir), process)
    process.terminate()
    process.communicate(timeout=120)
    assert not (workdir / "summary.json").exists()
    finish(workdir, *change)
    assert results(workdir) == results(alone)


# ---------------------------------------------------------------------- what a user can get wrong


@pytest.mark.parametrize("key", HALVES)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({None: "float16"}, "must be float32 or bfloat16, got 'float16'"),
        ({None: "bfloat16", "lora.rank": 8}, "adapters are trained"),
        ({None: "bfloat16", "model.adapter": "somewhere"}, "adapters are trained"),
    ],
    ids=["no such type", "adapters", "adapters of others"],
)
def test_what_is_refused(key: str, changes: dict, words: str):
    config = quickstart_sums.get_config()
    config.update_from_flattened_dict({name or key: value for name, value in changes.items()})
    with pytest.raises(InputError, match=f"train.{key.split('.')[1]}.*{words}"):
        check(config)

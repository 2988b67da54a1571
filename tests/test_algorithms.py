"""Slow twin: PPO's critic and PRIME's process model against full rows and plain gradients. Semantics: what each
algorithm trains, in which order, and what it is refused with."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_library import SMALL, small_config
from test_update import ROWS, assert_close, make_batch, model_of, plain_scores
from tiny_model import LLAMA, MESHES, forward_of, on_mesh, placed, random_params

from ttrl_jax import cli, commands, train
from ttrl_jax import library as ttrl
from ttrl_jax.errors import InputError
from ttrl_jax.learn import credit as rules
from ttrl_jax.learn import loss as losses
from ttrl_jax.learn.critic import new_head, response_values, trunk_of
from ttrl_jax.learn.update import Sizes, Update
from ttrl_jax.model import decoder
from ttrl_jax.model.sharding import replicated
from ttrl_jax.records import Model
from ttrl_jax.reward.judge import RULES
from ttrl_jax.session import learn

ROOT = Path(__file__).parent.parent


def updater(forward, loss, model, *, minibatch=ROWS, reference=None, shards=1, few=False, micro=1000):
    sizes = dict(minibatch_rows=minibatch, micro_tokens=micro, chunk_tokens=1000, longest=18, shards=shards)
    return Update(
        forward,
        optax.identity(),
        loss=loss,
        sizes=Sizes(**sizes, in_place=False, few=few),
        reference=reference,
        shardings=jax.tree.map(lambda leaf: leaf.sharding, model),
        announce=lambda *told: None,
    )


# ---------------------------------------------------------------------- the critic


def values_forward(params, base, micro):
    return response_values(params, base, LLAMA, micro, dtype=jnp.float32, remat="none", unroll=True)


def plain_values(params, trunk, batch):
    """float32 [R, T'], from whole rows."""
    hidden = decoder.forward(trunk, LLAMA, jnp.asarray(batch.ids), dtype=jnp.float32, remat="none")
    at = np.minimum(batch.prompt_lengths[:, None] - 1 + np.arange(batch.mask.shape[1]), batch.ids.shape[1] - 1)
    states = jnp.take_along_axis(hidden, at[..., None], 1)
    return states @ params["head"]["weight"] + params["head"]["bias"]


def plain_value_loss(params, trunk, batch, old, returns, clip):
    values = plain_values(params, trunk, batch)
    near = jnp.clip(values, old - clip, old + clip)
    worst = jnp.maximum((values - returns) ** 2, (near - returns) ** 2)
    return 0.5 * (worst * batch.mask).sum() / batch.mask.sum()


def critic_params(*, trunk):
    head = {"weight": np.random.default_rng(3).normal(size=LLAMA.width).astype(np.float32), "bias": np.float32(0.1)}
    own = {"trunk": trunk_of(random_params(LLAMA, seed=5))} if trunk == "own" else {}
    return jax.tree.map(jnp.asarray, {"head": head} | own)


@pytest.mark.parametrize("trunk", [pytest.param("own", marks=pytest.mark.slow), "policy"])
def test_the_critic_equals_the_slow_twin(trunk):
    """Its values, its loss away from the old values, and its gradient; none goes to the policy's states."""
    params, base = critic_params(trunk=trunk), jax.tree.map(jnp.asarray, random_params(LLAMA))
    (batch, _), rng = make_batch(LLAMA), np.random.default_rng(4)
    returns = rng.normal(size=batch.mask.shape).astype(np.float32)
    under = params["trunk"] if trunk == "own" else base
    values = np.asarray(plain_values(params, under, batch)) * batch.mask
    old = (values + 0.3 * rng.normal(size=values.shape)).astype(np.float32)
    base = None if trunk == "own" else base
    update = updater(values_forward, losses.values(clip=0.2), model_of(params, optax.identity()))
    np.testing.assert_allclose(update.score(params, batch, base=base), values, rtol=1e-5, atol=2e-5)
    numbers = {"returns": returns, "old": old}
    model, metrics, _ = update(model_of(params, optax.identity()), batch, numbers, 1e4, base=base)

    def loss(params):
        trunk = params["trunk"] if "trunk" in params else under
        return plain_value_loss(params, trunk, batch, old, returns, 0.2)

    value, want = jax.value_and_grad(loss)(params)
    assert_close(jax.tree.map(lambda before, after: (before - after) / 1e4, params, model.params), want, 2e-5)
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5) and 0 < metrics["clip_fraction"] < 1
    assert ("trunk" in want) == (trunk == "own")


def test_a_new_head_is_drawn_by_the_seed():
    one, again, other = (new_head(LLAMA, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one["weight"], again["weight"])
    assert (one["weight"] != other["weight"]).all() and one["bias"] == 0
    wide = new_head(dataclasses.replace(LLAMA, width=4096), seed=0)
    assert wide["weight"].std() == pytest.approx(0.02, rel=0.05) and wide["weight"].dtype == np.float32


# ---------------------------------------------------------------------- the process model


@pytest.mark.slow
@pytest.mark.parametrize("shape", [None, pytest.param(MESHES[1], marks=pytest.mark.slow)], ids=str)
def test_the_process_model_equals_the_slow_twin(shape):
    """Two optimizer steps: gradients of rows' cross-entropies, and log-ratios each from before its own step."""
    (batch, _), rng = make_batch(LLAMA), np.random.default_rng(6)
    start = jax.tree.map(jnp.asarray, random_params(LLAMA))
    first = jax.tree.map(lambda x: x + 0.01 * rng.normal(size=x.shape).astype(np.float32), start)
    outcome = np.repeat(rng.integers(2, size=(ROWS, 1)), batch.mask.shape[1], 1).astype(np.float32) * batch.mask
    row = (np.arange(ROWS)[:, None] * batch.mask).astype(np.float32)
    loss, rate = losses.process(beta=0.5, rows=ROWS), 0.05
    reference, _ = plain_scores(start, LLAMA, batch)

    def plain(params, rows):
        logps, _ = plain_scores(params, LLAMA, batch)
        logits = 0.5 * ((logps - reference) * batch.mask).sum(1)[rows]
        right = outcome[rows, 0]
        return -(right * jax.nn.log_sigmoid(logits) + (1 - right) * jax.nn.log_sigmoid(-logits)).mean()

    halves, params, ratios, found = (slice(0, 8), slice(8, 16)), first, np.zeros(batch.mask.shape), []
    for rows in halves:
        logps, _ = plain_scores(params, LLAMA, batch)
        ratios[rows] = ((logps - reference) * batch.mask)[rows]
        value, gradient = jax.value_and_grad(plain)(params, rows)
        found.append(float(value))
        params = jax.tree.map(lambda x, g: x - rate * g, params, gradient)

    def run(place, **more):
        model = model_of(first, optax.identity()) if place is None else place(first)
        reference = start if place is None else place(start).params
        forward = forward_of(LLAMA, temperature=0.8)
        update = updater(forward, loss, model, minibatch=8, reference=reference, micro=48, **more)
        return update(model, batch, {"outcome": outcome, "row": row}, rate)

    if shape is None:
        model, metrics, kept = run(None)
    else:
        with on_mesh(shape) as mesh:
            model, metrics, kept = run(
                lambda params: Model(placed(jax.tree.map(np.asarray, params), LLAMA, mesh), optax.EmptyState()),
                shards=shape[0] * shape[1],
            )
            assert kept.sharding == replicated(mesh)
    np.testing.assert_allclose(kept, ratios, atol=5e-5)
    assert_close(model.params, params, 2e-5)
    assert metrics["loss"] == pytest.approx(np.mean(found), rel=1e-4)
    assert 0 <= metrics["accuracy"] <= 1


# ---------------------------------------------------------------------- what an algorithm does in a session


def opened(algorithm, *, step=0, **changes):
    config = small_config(algorithm=algorithm, **{"episodes": 2, "data.limit": 8, **changes})
    session = ttrl.open_session(ttrl.read_inputs(config))
    batch = session.problems.take(step)
    prompts, key = ttrl.encode(session, batch), ttrl.step_key(session, 0)
    rollouts = ttrl.sample(session, prompts, key, votes=8, sampling=session.sampling)
    ballots = ttrl.cast_votes(session.task, rollouts.texts)
    judge = ttrl.judge_of(session.config, session.task)
    evidence = ttrl.evidence_of(session, prompts, rollouts, judge)
    verdict = judge(ballots, evidence, ttrl.History(), ttrl.Draw(0, 0, [problem.index for problem in batch]))
    chosen = ttrl.select(verdict.rewards, samples=4)
    return session, ttrl.train_batch(prompts, rollouts, chosen), verdict.take(chosen)


@pytest.mark.parametrize(
    ("algorithm", "rule", "changes"),
    [
        ("dr_grpo", rules.centred, {}),
        pytest.param("grpo", rules.entropic, {"train.advantage": "entropic"}, marks=pytest.mark.slow),
        pytest.param("rloo", rules.leave_one_out, {}, marks=pytest.mark.slow),
    ],
)
def test_rewards_against_their_group(algorithm, rule, changes):
    session, rows, verdict = opened(algorithm, **changes)
    after, advantages, found = ttrl.credit(session, rows, verdict)
    np.testing.assert_array_equal(advantages, rule(verdict.rewards).reshape(-1, 1) * rows.mask)
    assert after is session and list(session.state.models) == ["policy"] and list(found) == ["advantage"]
    _, metrics = ttrl.update(session, rows, {"advantages": advantages})
    whole = rows.mask.shape[0] * session.config.rollout.max_tokens if algorithm == "dr_grpo" else rows.mask.sum()
    assert metrics["policy_loss"] == pytest.approx(-advantages.sum() / whole, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("trunk", ["own", pytest.param("policy", marks=pytest.mark.slow)])
def test_ppo_trains_its_critic_before_the_policy_by_the_values_before(trunk):
    session, rows, verdict = opened("ppo", **{"critic.trunk": trunk, "critic.learning_rate": 1e-3})
    assert list(session.state.models) == ["policy", "critic"]
    before = np.asarray(ttrl.score(session, rows, model="critic"))
    want, returns, _ = rules.ppo(verdict, rows.mask, before, gamma=1.0, lam=1.0)
    policy = jax.tree.map(np.asarray, session.state.policy.params)
    session, advantages, found = ttrl.credit(session, rows, verdict)
    np.testing.assert_array_equal(advantages, want)
    jax.tree.map(np.testing.assert_array_equal, policy, jax.tree.map(np.asarray, session.state.policy.params))
    after = np.asarray(ttrl.score(session, rows, model="critic"))
    tokens = rows.mask > 0
    assert ((after - returns)[tokens] ** 2).mean() < ((before - returns)[tokens] ** 2).mean()
    assert set(found["critic"]) >= {"value", "return", "explained_variance", "loss", "clip_fraction", "grad_norm"}
    session, metrics = ttrl.update(session, rows, {"advantages": advantages})
    assert session.step == int(session.state.step) == 1 and np.isfinite(metrics["grad_norm"])


def test_prime_rewards_tokens_by_what_its_model_said_while_it_learned():
    session, rows, verdict = opened("prime", **{"prime.learning_rate": 1e-3, "prime.minibatch_rows": 16})
    assert list(session.state.models) == ["policy", "process"]
    session, advantages, found = ttrl.credit(session, rows, verdict)
    assert found["process"]["log_ratio"] != 0  # the second minibatch was scored by a model that had learned
    outcome = verdict.rewards.reshape(-1, 1) * rows.mask
    row = np.arange(len(rows.mask), dtype=np.float32)[:, None] * rows.mask
    session, metrics, ratios = learn(session, "process", rows, {"outcome": outcome, "row": row})
    ratios = np.asarray(ratios)
    assert np.abs(ratios[:16]).max() > 0 and metrics["loss"] < 0.6931
    assert np.isfinite(advantages).all() and not advantages[rows.mask == 0].any()
    session, _ = ttrl.update(session, rows, {"advantages": advantages})
    assert session.step == 1


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["prime", "ppo"])
def test_a_smaller_last_step_is_learned_from(algorithm):
    """2 of 6 questions, where a step and its minibatch have 4."""
    session, rows, verdict = opened(
        algorithm, step=1, **{"data.limit": 6, "rollout.prompts": 4, "train.minibatch_prompts": 4}
    )
    assert session.inputs.total_steps == 4 and len(rows.mask) == 2 * 4
    session, advantages, found = ttrl.credit(session, rows, verdict)
    assert np.isfinite(advantages).all() and advantages[rows.mask > 0].any()
    learned = found["process" if algorithm == "prime" else "critic"]
    assert 0 < learned["loss"] < 10 and np.isfinite(learned["grad_norm"])
    if algorithm == "prime":  # the process model began as the start: it says nothing yet, and the loss is ln 2
        assert learned["loss"] == pytest.approx(np.log(2), rel=1e-3)
    session, metrics = ttrl.update(session, rows, {"advantages": advantages})
    assert session.step == 1 and np.isfinite(metrics["grad_norm"])


# Eight votes on a question, "-" without an answer. A clear vote, with a rival that has a quarter; a tie; nothing but
# rare answers; and a clear vote, with a rare answer among the four that are trained on.
VOTES = ["abba-aac", "abbacdef", "abcdefgh", "ca-baaab"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "rloo", "ppo", "prime"])
def test_every_rule_with_every_algorithm(algorithm):
    """A step each: nothing has an advantage where the scale is 0 or there is no token, and the rest teaches."""
    session = ttrl.open_session(ttrl.read_inputs(small_config(algorithm=algorithm, **{"prime.minibatch_rows": 16})))
    batch = session.problems.take(0)
    ids, prompts = [problem.index for problem in batch], ttrl.encode(session, batch)
    rollouts = ttrl.sample(session, prompts, ttrl.step_key(session, 0), votes=8, sampling=session.sampling)
    ballots = [ttrl.vote([None if vote == "-" else ttrl.Answer(vote) for vote in group]) for group in VOTES]
    chosen = np.tile(np.arange(4), (8, 1))
    rows, history = ttrl.train_batch(prompts, rollouts, chosen), ttrl.History()
    for step, label in enumerate("xxxxy"):  # sure of one label, then of another; now both are gone
        visits = history.visits_of(step, ids, ballots, [0] * 8, rollouts.lengths)
        history = history.add([dataclasses.replace(visit, label=label, share=0.9) for visit in visits])
    seen, rules_of = set(), [name for name, rule in RULES.items() if algorithm != "prime" or rule.outcomes]
    for name in rules_of:
        judge = ttrl.judge_of(small_config(**{"judge.rule": name}), session.task)
        evidence = ttrl.evidence_of(session, prompts, rollouts, judge)
        verdict = judge(ballots, evidence, history, ttrl.Draw(0, session.step, ids)).take(chosen)
        session, advantages, found = ttrl.credit(session, rows, verdict)
        left_out = np.repeat(verdict.scale == 0, 4)
        assert advantages.shape == rows.mask.shape and np.isfinite(advantages).all(), name
        assert not advantages[left_out].any() and not advantages[rows.mask == 0].any(), name
        assert advantages[~left_out].any() and found["advantage"]["min"] < 0 < found["advantage"]["max"], name
        session, metrics = ttrl.update(session, rows, {"advantages": advantages})
        assert 0 < metrics["grad_norm"] < np.inf and np.isfinite(metrics["loss"]), name
        kinds = {"left out": left_out, "bonus": verdict.bonus, "negative": verdict.rewards < 0}
        seen |= {(name, kind) for kind, where in kinds.items() if where.any()}
    assert session.step == len(rules_of) == (4 if algorithm == "prime" else 9)
    ttrl.close(session)
    outcomes, others = {("guard", "left out"), ("guard", "bonus")}, {("negative", "negative"), ("scrl", "negative")}
    assert seen == (outcomes if algorithm == "prime" else outcomes | others | {("gate", "left out")})


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if not rule.outcomes])
def test_prime_is_refused_rules_that_give_no_outcomes(rule):
    words = f"set judge.rule to one of majority, guard, best_of, soft, got '{rule}'"
    with pytest.raises(InputError, match=words):
        ttrl.read_inputs(small_config(algorithm="prime", **{"judge.rule": rule}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithm": "prime", "judge.no_answer_reward": -1.0}, ("prime", "judge.no_answer_reward", "-1.0")),
        ({"algorithm": "reinforce"}, ("algorithm", "grpo, dr_grpo, rloo, ppo, prime", "'reinforce'")),
        ({"algorithm": "rloo", "train.advantage": "entropic"}, ("train.advantage", "rloo")),
        ({"train.advantage": "mean"}, ("train.advantage", "'mean'")),
        ({"critic.trunk": "mine"}, ("critic.trunk", "own or policy")),
        ({"critic.gamma": 1.5}, ("critic.gamma", "1.5")),
        ({"critic.gae_lambda": -0.1}, ("critic.gae_lambda", "-0.1")),
        ({"critic.clip": 0.0}, ("critic.clip",)),
        ({"prime.beta": 0.0}, ("prime.beta",)),
        ({"prime.minibatch_rows": 0}, ("prime.minibatch_rows",)),
        ({"algorithm": "prime", "judge.rule": "vote_share"}, ("prime", "judge.rule", "majority")),
        (
            {"algorithm": "prime", "reward.format": ("a",), "reward.format_weight": 0.5},
            ("prime", "reward.format_weight", "0.5"),
        ),
    ],
)
def test_what_does_not_go_together(changes, words):
    with pytest.raises(InputError) as error:
        ttrl.read_inputs(small_config(**changes))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "prime"])
def test_a_run_goes_on_with_all_its_models(algorithm, tmp_path, monkeypatch, fresh_flags):
    """Invariance: a session restored after the first of two episodes takes the very second step, of every model."""
    monkeypatch.chdir(tmp_path)
    changes = {"algorithm": algorithm, "episodes": 2, "checkpoint.keep": 2, "prime.minibatch_rows": 16}
    changes |= {"critic.learning_rate": 1e-3, "prime.learning_rate": 1e-3}
    config = small_config(**changes)
    arguments = [f"--config.{name}={value}" for name, value in (SMALL | changes).items()]
    monkeypatch.setattr(sys, "argv", ["train", f"--config={ROOT / 'configs' / 'quickstart_sums.py'}", *arguments])
    assert cli.run(train.main, commands.TRAIN, doc="") == 0
    run = Path("runs/quickstart_sums")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    group = {"ppo": "critic", "prime": "process"}[algorithm]
    assert {f"{group}/loss", f"{group}/grad_norm", "advantage/max"} <= set(rows[0])
    with ttrl.Checkpoints(run / "checkpoints", keep=None) as checkpoints:
        session = ttrl.open_session(ttrl.read_inputs(config), begin=False)
        first = ttrl.restore(session, checkpoints, 1)
        first = taken(first, 1)
        last = ttrl.restore(session, checkpoints, 2)
    assert sorted(first.state.models) == sorted(["policy", group])
    for one, two in zip(jax.tree.leaves(first.state), jax.tree.leaves(last.state), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def taken(session, step):
    """The session after a training step as train takes it."""
    batch = session.problems.take(step)
    prompts = ttrl.encode(session, batch)
    votes = {"votes": session.config.rollout.votes, "sampling": session.sampling}
    rollouts = ttrl.sample(session, prompts, ttrl.step_key(session, step), **votes)
    judge, ballots = ttrl.judge_of(session.config, session.task), ttrl.cast_votes(session.task, rollouts.texts)
    evidence = ttrl.evidence_of(session, prompts, rollouts, judge)
    verdict = judge(ballots, evidence, ttrl.History(), ttrl.Draw(0, step, [problem.index for problem in batch]))
    chosen = ttrl.select(verdict.rewards, samples=session.config.train.samples)
    rows = ttrl.train_batch(prompts, rollouts, chosen)
    session, advantages, _ = ttrl.credit(session, rows, verdict.take(chosen))
    return ttrl.update(session, rows, {"advantages": advantages})[0]

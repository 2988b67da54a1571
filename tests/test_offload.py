"""Invariance: masters and moments that rest in the hosts' memory change no number."""

import jax
import numpy as np
import pytest

from configs import quickstart_sums
from ttrl_jax.algorithms import credit
from ttrl_jax.errors import InputError
from ttrl_jax.inputs import read_inputs
from ttrl_jax.learn.batch import train_batch
from ttrl_jax.model import sharding
from ttrl_jax.model.sharding import HOST, on_devices, on_hosts, require_host_memory
from ttrl_jax.reward.judge import Verdict
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.session import close, encode, open_session, restore, sample, save, step_key, update


def kinds(tree) -> set[str]:
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


def steps(tmp_path, *, offload: bool, algorithm: str = "grpo") -> tuple[list, list]:
    """What two steps draw and leave, the second of a session that went on from a checkpoint."""
    config = quickstart_sums.get_config()
    config.update_from_flattened_dict({
        "algorithm": algorithm, "mesh.offload": offload, "rollout.votes": 8, "train.samples": 4, "data.limit": 16,
        "episodes": 2, "eval.tasks": (),
    })  # fmt: skip
    inputs, tokens = read_inputs(config), []
    with Checkpoints(tmp_path / str(offload), keep=1) as checkpoints:
        for step in range(2):
            session = open_session(inputs, say=lambda line: None, begin=not step)
            session = restore(session, checkpoints, 1) if step else session
            assert kinds(session.state.models) == ({HOST} if offload else {"device"})
            problems = session.problems.take(step)
            prompts = encode(session, problems)
            rollouts = sample(session, prompts, step_key(session, step), votes=8, sampling=session.sampling)
            rows = train_batch(prompts, rollouts, np.tile(np.arange(4), (len(problems), 1)))
            rewards = np.tile(np.float32([0, 1, 1, 0]), (len(problems), 1))
            nothing = [None] * len(problems)
            verdict = Verdict(nothing, nothing, rewards, np.ones(len(problems)), np.zeros_like(rewards))
            session, advantages, _ = credit(session, rows, verdict)
            session, _ = update(session, rows, {"advantages": advantages})
            assert kinds(session.state.models) == ({HOST} if offload else {"device"})
            tokens.append(rollouts.tokens)
            save(session, checkpoints)
            checkpoints.wait()
            left = [np.asarray(leaf) for leaf in jax.tree.leaves(session.state)]
            close(session)
    return tokens, left


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_offloading_changes_no_number(tmp_path, algorithm):
    (tokens, left), (others, rest) = (
        steps(tmp_path / "runs", offload=offload, algorithm=algorithm) for offload in (False, True)
    )
    for one, other in zip([*tokens, *left], [*others, *rest], strict=True):
        np.testing.assert_array_equal(one, other)


def test_there_and_back():
    tree = {"a": jax.numpy.arange(3.0)}
    there = on_hosts(tree)
    assert kinds(there) == {HOST} and tree["a"].is_deleted()
    back = on_devices(there)
    assert kinds(back) == {"device"} and back["a"].tolist() == [0, 1, 2] and not there["a"].is_deleted()


def test_devices_without_such_memory_are_refused(monkeypatch):
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    require_host_memory(mesh)
    monkeypatch.setattr(sharding, "HOST", "another")
    with pytest.raises(InputError, match="mesh.offload=True needs memory of the kind another"):
        require_host_memory(mesh)

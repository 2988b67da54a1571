"""What each of several processes does in tests/test_distributed.py: python pod_work.py WORK FOLDER --coordinator ...

The same functions, called in a single process, give what is expected.
"""

import errno
import itertools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tiny_model import LLAMA, forward_of, random_params

from ttrl_jax import cli
from ttrl_jax.commands import PROCESSES, Command
from ttrl_jax.data.problems import Problem
from ttrl_jax.errors import InputError
from ttrl_jax.learn.batch import train_batch
from ttrl_jax.learn.layout import model_layout, params_layout, state_layout
from ttrl_jax.learn.loss import grpo
from ttrl_jax.learn.optimizer import make_optimizer
from ttrl_jax.learn.update import Sizes, Update
from ttrl_jax.model import decoder
from ttrl_jax.model.sharding import make_mesh, of_hosts, on_this_host, shardings
from ttrl_jax.records import Model, Prompts, Rollouts, TrainState
from ttrl_jax.reward.extract import Answer
from ttrl_jax.rollout import hosts
from ttrl_jax.rollout.sampler import Sampler
from ttrl_jax.rollout.sampling import Sampling
from ttrl_jax.rollout.shapes import Shapes
from ttrl_jax.run import distributed
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.tasks.hearing import Hearing, stop_of
from ttrl_jax.tasks.task import Task

# The last has more devices along tensor than the model has kv heads.
MESHES = [(8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2), (1, 2, 4)]
UPDATED = {2: MESHES[3:4], 4: MESHES[1:3] + MESHES[4:]}  # by the number of processes
# Likewise: prompts, and whether each host draws by itself. None can be shared evenly.
SAMPLED = {2: [(5, True), (5, False)], 4: [(3, True)]}
MAX_TOKENS = 12


def placed(tree, layout):
    """Host arrays laid over all devices as `layout` has it."""
    return jax.tree.map(
        lambda x, like: jax.make_array_from_callback(like.shape, like.sharding, lambda index: np.asarray(x)[index]),
        tree,
        layout,
    )


def whole(x):
    """The values of an array that may lie on several hosts."""
    everywhere = jax.sharding.NamedSharding(x.sharding.mesh, jax.sharding.PartitionSpec())
    return np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(x))


def scores_and_gradients(shape):
    """Log-probs [R, T'] of fixed rows (0 where there is no token), and the gradient of each parameter, on a mesh."""
    rng = np.random.default_rng(0)
    prompts = Prompts(rng.integers(64, size=(2, 6)), np.array([6, 3], np.int32), np.arange(2))
    lengths = rng.integers(1, 13, size=(2, 8)).astype(np.int32)
    tokens, logps = rng.integers(64, size=(2, 8, 12)), np.zeros((2, 8, 12))
    rollouts = Rollouts(tokens, lengths, logps, lengths == 12, 0)
    batch = train_batch(prompts, rollouts, np.tile(np.arange(8), (2, 1)))
    advantages = (rng.normal(size=(16, 1)) * batch.mask).astype(np.float32)
    mesh = make_mesh(data=shape[0], fsdp=shape[1], tensor=shape[2])
    with jax.set_mesh(mesh):
        layout = params_layout(LLAMA, mesh)
        params = placed(random_params(LLAMA), layout)
        optimizer = make_optimizer(b1=0.9, b2=0.99, weight_decay=0.01, grad_clip=1.0)
        update = Update(
            forward_of(LLAMA, temperature=0.8, unroll=False),
            optimizer,
            loss=grpo(clip_low=0.2, clip_high=0.2, dual_clip=3.0, kl_coef=0.05, entropy_coef=0.01),
            sizes=Sizes(
                minibatch_rows=16,
                micro_tokens=192,
                chunk_tokens=24,
                longest=18,
                shards=shape[0] * shape[1],
                in_place=False,
                few=False,
            ),
            reference=None,
            shardings=jax.tree.map(lambda leaf: leaf.sharding, model_layout(layout, optimizer, mesh)),
            announce=lambda *told: None,
        )
        scores, total = update.score(params, batch), update._zeros(params)
        numbers = {"advantages": advantages, "sampler_logps": batch.sampler_logps, "old": scores, "reference": scores}
        for micro in update.micro_batches(batch, np.arange(16)):
            own = {name: micro.take(values) for name, values in numbers.items()}
            total, _, _ = update._gradient(params, None, None, total, micro, own)
        return np.asarray(scores), [whole(leaf) for leaf in jax.tree.leaves(total)]


def updates(folder: Path) -> None:
    """Log-probs and gradients on meshes."""
    for shape in UPDATED[jax.process_count()]:
        logps, gradients = scores_and_gradients(shape)
        if distributed.leader():
            np.savez(folder / f"{shape}.npz", logps, *gradients)


def sampled(shape, *, prompts: int, host: bool, stops: bool = False):
    """Responses to so many prompts, drawn by each host by itself or by all devices together; stops: only the votes that
    certify whether most responses begin with a token that is no multiple of 8."""
    rng = np.random.default_rng(1)
    batch = Prompts(
        rng.integers(64, size=(prompts, 7)).astype(np.int32),
        rng.integers(1, 8, size=prompts).astype(np.int32),
        np.arange(prompts, dtype=np.uint32) * 7,
    )
    mesh = make_mesh(data=shape[0], fsdp=shape[1], tensor=shape[2])
    jax.set_mesh(mesh)
    group = of_hosts(mesh) if host else mesh
    copy = decoder.sampling_weights(random_params(LLAMA), LLAMA, jnp.float32)
    axes = shardings(decoder.sampling_axes(LLAMA), copy, group, without=("embed",))
    weights = placed(copy, jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), copy, axes))
    if host:
        weights, mesh = jax.tree.map(on_this_host, weights), group.local_mesh
    sampler = Sampler(
        LLAMA,
        dtype=jnp.float32,
        shapes=Shapes(16, MAX_TOKENS, 64, mesh.shape["data"], mesh.shape["fsdp"]),
        stop_ids=(3, 5, 9, 11),
        announce=lambda *told: None,
    )

    asked = [Problem(int(uid), f"{uid}", f"{uid}?", None) for uid in batch.uids]
    task = Task("multiples", lambda question: [], lambda text: Answer(f"{int(text.split()[0]) % 8 == 0}"), None, None)
    stop = stop_of(task, asked, error=0.9 if stops else 0.0, least=2)

    def draw(prompts, key, *, progress):
        uids = prompts.uids.tolist()
        heard = Hearing(lambda ids: " ".join(map(str, ids)), uids, votes=4, greedy=False, stop=stop)
        way = dict(votes=4, sampling=Sampling(temperature=1.0), progress=progress, ended=heard.ended)
        way["wanted"] = (lambda which: distributed.first(heard.wanted(which))) if stops and not host else None
        way["wanted"] = heard.wanted if stops and host else way["wanted"]
        return heard.with_texts(sampler(weights, prompts, key, **way))

    key = jax.random.key(5)
    if not host:
        return draw(batch, key, progress=lambda *done: None)
    return hosts.sample_shares(draw, batch, key, host=mesh, votes=4, max_tokens=MAX_TOKENS, progress=lambda *done: None)


def samples(folder: Path) -> None:
    """Responses on every host by itself and on all devices together."""
    for (prompts, host), stops in itertools.product(SAMPLED[jax.process_count()], (False, True)):
        rollouts = sampled((1, 4, 2), prompts=prompts, host=host, stops=stops)
        found = dict(tokens=rollouts.tokens, lengths=rollouts.lengths, logps=rollouts.logps)
        found |= dict(
            truncated=rollouts.truncated, slot_steps=rollouts.slot_steps, texts=np.array(json.dumps(rollouts.texts))
        )
        counted = np.ones(rollouts.lengths.shape, bool) if rollouts.counted is None else rollouts.counted
        found |= dict(counted=counted, thrown=np.int64(rollouts.thrown)) if stops else {}
        everywhere = distributed.gather(
            lambda found=found: {name: x.tobytes() for name, x in found.items() if name not in ("slot_steps", "thrown")}
        )
        assert all(other == everywhere[0] for other in everywhere), "processes know other responses"
        if distributed.leader():
            np.savez(folder / f"{prompts}-{host}{'-stops' * stops}.npz", **found)


def state_on(shape):
    """A state with parameters of random numbers, and how it lies on a mesh over all devices."""
    mesh = make_mesh(data=shape[0], fsdp=shape[1], tensor=shape[2])
    optimizer = make_optimizer(b1=0.9, b2=0.99, weight_decay=0.01, grad_clip=1.0)
    layout = state_layout({"policy": model_layout(params_layout(LLAMA, mesh), optimizer, mesh)}, mesh)
    params = random_params(LLAMA)
    policy = Model(params, optimizer.init(jax.tree.map(jnp.asarray, params)))
    state = TrainState(np.int32(3), {"policy": policy})
    return state, layout


def save(folder: Path) -> None:
    state, layout = state_on((1, 4, 2))
    with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(3, placed(state, layout), {"seed": 7})


def restore(folder: Path) -> None:
    """Read what `save` saved, on another mesh, and compare."""
    state, layout = state_on((2, -1, 1) if jax.device_count() > 1 else (1, 1, 1))
    with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
        restored = checkpoints.restore(checkpoints.latest(), layout)
        assert checkpoints.meta(3) == {"seed": 7}
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert got.dtype == want.dtype and whole(got).tobytes() == np.asarray(want).tobytes()
    if distributed.leader():
        (folder / "restored").write_text(str(len(jax.tree.leaves(restored))))


def meetings(folder: Path) -> None:
    """What passes between processes, and how they refuse to go on."""
    count, index = jax.process_count(), jax.process_index()
    assert distributed.gather(lambda: (index, "é" * 3000 * index)) == [(i, "é" * 3000 * i) for i in range(count)]
    assert distributed.each(lambda x: (x * x, index), range(7)) == [
        (x * x, next(i for i in range(count) if 7 * (i + 1) // count > x)) for x in range(7)
    ]
    assert distributed.first(("a", index)) == ("a", 0)
    large = np.random.default_rng(index).integers(256, size=6_000_000, dtype=np.uint8)
    assert [len(x) for x in distributed.gather(lambda: large.tobytes()[: 6_000_000 - index])][index] == len(
        large
    ) - index

    assert distributed.gather(lambda: distributed.signalled(None)) == [None] * count
    told = distributed.gather(lambda: distributed.signalled(15 if index == count - 1 else None))
    assert told[-1] == 15 and distributed.signalled(None) == 15

    def fail_in_the_last():
        if index == count - 1:
            raise InputError("the last one cannot read its file")
        return index

    refusals = []
    for meet in (
        lambda: distributed.together(fail_in_the_last),
        lambda: distributed.require_same({"seed": 5, "the files of model.path": index == count - 1}),
    ):
        try:
            meet()
        except InputError as error:
            refusals.append(str(error))
    distributed.require_same({"seed": 5})
    (folder / f"refusals{index}").write_text("\n".join(refusals))


def failures(folder: Path) -> None:
    """What process 0 alone fails at, and what it would have done next."""

    def fail() -> None:
        raise OSError(errno.ENOSPC, "full")

    for name, work in {"before": None, "failing": fail, "after": None}.items():
        distributed.alone(work or (folder / name).touch)
    try:
        distributed.first("a")
    except OSError as error:
        (folder / f"failed{jax.process_index()}").write_text(errno.errorcode[error.errno])


WORK = {each.__name__: each for each in (updates, samples, save, restore, meetings, failures)}


WORKER = Command(flags=PROCESSES, takes="WORK", several=True)


def main(*arguments: str) -> int:
    cli.join_processes()
    *names, folder = arguments
    for name in names:
        WORK[name](Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, WORKER, doc=__doc__))

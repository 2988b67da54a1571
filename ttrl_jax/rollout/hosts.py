"""Where responses are sampled when there are several processes: on each host by itself, or on all devices together.

A host that samples by itself decodes its share of the questions without any exchange with the others. All responses to
a question are drawn on one host. Afterwards all hosts get all responses.
"""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.lora import weight_bytes
from ttrl_jax.model.sharding import of_hosts
from ttrl_jax.records import Prompts, Rollouts
from ttrl_jax.run import distributed

_USABLE = 0.9  # of a device's memory; the rest is for what programs hold while they run


def choose(mesh: jax.sharding.Mesh, *, needed_bytes: Callable[[jax.sharding.Mesh], float]) -> tuple[bool, str]:
    """Whether each host samples by itself, and why, in words; the same in all processes.

    needed_bytes: of each device of a host that does, by the mesh of one host. Where devices do not say how much memory
    they have, as CPUs, each host does.
    """
    if not distributed.several():
        return False, "by one process"
    limits = [stats["bytes_limit"] for device in jax.local_devices() if (stats := device.memory_stats())]
    limit = min(distributed.gather(lambda: min(limits, default=math.inf)))
    needed, usable = needed_bytes(of_hosts(mesh).local_mesh), _USABLE * limit
    if needed <= usable:
        room = "" if limit == math.inf else f" of the {usable / 1e9:.1f} GB that they have"
        return True, f"by each host for its own questions: its devices need {needed / 1e9:.1f} GB{room}"
    return False, (
        f"by all devices together: those of one host would need {needed / 1e9:.1f} GB each, and have {usable / 1e9:.1f}"
    )


def shortage(mesh: jax.sharding.Mesh, needed: float) -> str | None:
    """What to set where sampling needs more of each device than JAX may use, in words; None where it fits, or where
    devices do not say how much memory they have."""
    device = mesh.devices.flat[0]
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats or needed <= stats["bytes_limit"]:
        return None
    more = "XLA_CLIENT_MEM_FRACTION=0.95 in the environment (JAX takes 0.75 of a GPU by itself), "
    return (
        f"sampling needs {needed / 1e9:.1f} GB of a device if all responses are as long as they may be, and "
        f"{stats['bytes_limit'] / 1e9:.1f} may be used: set {more if device.platform == 'gpu' else ''}"
        "mesh.offload=True, or a smaller rollout.rows"
    )


def sampling_bytes(
    model: ModelConfig,
    host: jax.sharding.Mesh,
    *,
    mesh: jax.sharding.Mesh,
    itemsize: int,
    rows: int,
    tokens: int,
    kept_bytes: int,
) -> float:
    """Bytes that each device of a host needs which samples by itself.

    The weights, of `itemsize` bytes each (those of a base may be in 8 bits), split over the host's tensor axis alone;
    the cache of `rows` responses of `tokens` tokens; and its part of what training keeps, kept_bytes, split over
    `mesh`.
    """
    tensor = host.shape["tensor"]
    heads = model.kv_heads / (tensor if model.kv_heads % tensor == 0 else 1)
    cache = 2 * model.layers * heads * model.head_dim * itemsize * rows * tokens / host.shape["fsdp"]
    kept = kept_bytes / (mesh.shape["fsdp"] * mesh.shape["tensor"])
    return weight_bytes(model, itemsize=itemsize) / tensor + cache + kept


def sample_shares(
    draw: Callable[..., Rollouts],
    prompts: Prompts,
    key: jax.Array,
    *,
    host: jax.sharding.Mesh,
    votes: int,
    max_tokens: int,
    progress: Callable[[int, float], None],
) -> Rollouts:
    """Each host draws responses to its share of the prompts; returns all responses to all prompts, in all processes.

    draw(prompts, key, progress=...): samples on the devices of `host`, the mesh of this one. What `progress` raises in
    one process, all raise. max_tokens: 0 for responses without their tokens.
    """
    own = distributed.share(len(prompts.lengths))
    numbers = np.asarray(jax.random.key_data(key))  # the key lies on all devices; the host's own need one of theirs

    def make() -> tuple[tuple[np.ndarray, ...], Sequence[Sequence[str]]]:
        if own.start == own.stop:  # fewer prompts than processes
            progress(0, 1.0)
            nothing = np.zeros((0, votes), np.int32)
            counts = nothing, nothing.astype(bool), np.int64(0), nothing.astype(np.float64), nothing.astype(bool), 0
            return (*counts, np.zeros(0, np.int32), np.zeros(0, np.float32)), ()
        with jax.set_mesh(host):
            mine = Prompts(prompts.ids[own], prompts.lengths[own], prompts.uids[own])
            rollouts = draw(mine, jax.random.wrap_key_data(numbers), progress=progress)
        real = _real(rollouts.lengths, max_tokens)
        counted = np.ones(real.shape[:2], bool) if rollouts.counted is None else rollouts.counted
        counts = rollouts.lengths, rollouts.truncated, np.int64(rollouts.slot_steps), rollouts.mean_logps
        counts += counted, rollouts.thrown
        return (*counts, rollouts.tokens[real], rollouts.logps[real]), rollouts.texts  # padding does not travel

    parts = distributed.gather(make)
    numbers = (each for each, _ in parts)
    lengths, truncated, slot_steps, means, counted, thrown, tokens, logps = zip(*numbers, strict=True)
    lengths, counted = np.concatenate(lengths), np.concatenate(counted)
    real = _real(lengths, max_tokens)
    whole = Rollouts(
        tokens=np.zeros(real.shape, np.int32),
        lengths=lengths,
        logps=np.zeros(real.shape, np.float32),
        truncated=np.concatenate(truncated),
        slot_steps=int(sum(slot_steps)),
        texts=[group for _, texts in parts for group in texts],
        means=None if max_tokens else np.concatenate(means),
        counted=None if counted.all() else counted,
        thrown=sum(thrown),
    )
    whole.tokens[real], whole.logps[real] = np.concatenate(tokens), np.concatenate(logps)
    return whole


def _real(lengths: np.ndarray, max_tokens: int) -> np.ndarray:
    """bool [P, V, max_tokens], where there is a token."""
    return np.arange(max_tokens) < lengths[..., None]

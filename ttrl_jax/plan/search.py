"""Where the settings do not fit: the nearest that should, by arithmetic. XLA has the last word (programs.py)."""

import itertools
import math
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from ttrl_jax import build
from ttrl_jax.errors import InputError
from ttrl_jax.model import decoder
from ttrl_jax.model.sharding import make_mesh, shardings
from ttrl_jax.plan.arithmetic import cache_bytes, chip_bytes, count
from ttrl_jax.plan.programs import Setting
from ttrl_jax.records import padded_length
from ttrl_jax.rollout import slots as places

MARGIN = 0.95  # of a chip's memory is planned with: the arithmetic does not know all that XLA does


def sampling_bytes(setting: Setting) -> float:
    """Bytes of a chip while the cache is at its longest."""
    config, model, mesh = setting.config, setting.model, setting.mesh
    layout = setting.layout()
    shapes = jax.eval_shape(lambda tree: decoder.sampling_weights(tree, model, setting.dtype), decoder.shapes(model))
    axes = decoder.sampling_axes(model)
    whole = shardings(axes, shapes, mesh, without=("embed",))
    copy = sum(
        math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(whole), strict=True)
    )
    votes, tokens = config.rollout.votes, config.rollout.max_tokens
    questions = places.prompts_at_once(prompts=config.rollout.prompts, votes=votes, rows=config.rollout.rows)
    padded = -(-questions // mesh.shape["data"]) * mesh.shape["data"]
    multiples = dict(prompt_multiple=mesh.shape["data"], vote_multiple=mesh.shape["fsdp"])
    slots = places.layouts(prompts=padded, votes=votes, rows=config.rollout.rows, **multiples)[0].size
    heads = mesh.shape["tensor"] if model.kv_heads % mesh.shape["tensor"] == 0 else 1
    own = slots / (mesh.shape["data"] * mesh.shape["fsdp"])
    item = setting.dtype.itemsize
    prefix = 2 * cache_bytes(model, questions * padded_length(config.prompt.max_tokens), itemsize=item)
    held = chip_bytes((layout, setting.frozen(layout))) + copy
    return (
        held + cache_bytes(model, 1, itemsize=item) * own * tokens / heads + prefix / heads + 4 * 4 * own * model.vocab
    )


def training_bytes(setting: Setting) -> float:
    """Bytes of a chip in the backward pass of its longest micro-batch."""
    config, model, mesh = setting.config, setting.model, setting.mesh
    layout, tensor = setting.layout(), mesh.shape["tensor"]
    length = padded_length(config.prompt.max_tokens + config.rollout.max_tokens)
    tokens = max(1, config.train.micro_tokens // length) * length
    item = setting.dtype.itemsize
    block = count(decoder.shapes(model)["blocks"]) / model.layers
    kept = item * tokens * model.width * model.layers  # what goes into each layer; with remat nothing else is kept
    layer = tokens * (4 * model.width + (3 * model.ffn + 2 * model.heads * model.head_dim) / tensor)
    layer *= item * (2 if config.train.remat else model.layers)
    table = model.vocab * model.width / tensor * (4 + item)  # its gradient and the gathered copy
    logits = 3 * 4 * min(config.train.chunk_tokens, tokens) * model.vocab / tensor
    held = chip_bytes((layout, setting.frozen(layout), layout.params))
    return held + kept + layer + table + logits + 3 * item * block / tensor


def nearest(setting: Setting, memory: float) -> Iterator[dict[str, int]]:
    """Changes of mesh.tensor, rollout.rows and train.micro_tokens with which it should fit, the smallest first."""
    config, devices = setting.config, list(setting.mesh.devices.flat)
    given = {
        "mesh.tensor": setting.mesh.shape["tensor"],
        "rollout.rows": config.rollout.rows,
        "train.micro_tokens": config.train.micro_tokens,
    }
    row = padded_length(config.prompt.max_tokens + config.rollout.max_tokens)
    ways = (
        _doublings(given["mesh.tensor"], min(len(devices), setting.model.heads)),
        _halvings(given["rollout.rows"], setting.mesh.shape["data"] * 4),
        _halvings(given["train.micro_tokens"], row),
    )
    tries = sorted(itertools.product(*map(enumerate, ways)), key=lambda each: sum(steps for steps, _ in each))
    for each in tries:
        change = {name: value for (name, old), (_, value) in zip(given.items(), each, strict=True) if value != old}
        if not change:
            continue
        try:
            other = changed(setting, change)
        except InputError:
            continue  # a mesh that does not divide
        if max(sampling_bytes(other), training_bytes(other)) <= MARGIN * memory:
            yield change


def changed(setting: Setting, change: dict[str, int]) -> Setting:
    """The setting with other values. Raises InputError for a mesh that does not fit the devices or the model."""
    config = ConfigDict(setting.config)
    with config.unlocked():
        for key, value in change.items():
            section, leaf = key.split(".")
            config[section][leaf] = value
        if "mesh.tensor" in change:
            config.mesh.fsdp = -1
    mesh = make_mesh(
        data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor, devices=list(setting.mesh.devices.flat)
    )
    return Setting(config, build.with_kernel(config, setting.model, mesh)[0], mesh)


def _doublings(start: int, most: int) -> list[int]:
    return [start * 2**i for i in range(20) if start * 2**i <= max(start, most)]


def _halvings(start: int, least: int) -> list[int]:
    return [start] + [start // 2**i for i in range(1, 20) if start // 2**i >= least]

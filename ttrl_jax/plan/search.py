"""Find the nearest settings that should fit, by arithmetic, if those of the config do not. XLA decides
(programs.py)."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ml_collections import ConfigDict, FrozenConfigDict

from ttrl_jax import programs
from ttrl_jax.errors import InputError
from ttrl_jax.learn.layout import sums_layout
from ttrl_jax.model.sharding import make_mesh
from ttrl_jax.plan.arithmetic import Draw, cache_bytes, chip_bytes
from ttrl_jax.plan.programs import Program, Setting
from ttrl_jax.rollout import copies
from ttrl_jax.rollout import slots as places

MARGIN = 0.97  # of a chip's memory is planned with


@dataclass(frozen=True)
class Estimate:
    """Bytes of a chip while a program runs."""

    state: int  # laid out by us, and known
    more: float  # by rule of thumb


def estimates(setting: Setting) -> dict[str, Estimate]:
    """The estimates for the programs that may need most memory, by name."""
    layout, base = setting.layout(), setting.base()
    start = chip_bytes((setting.start(layout), base))
    state = chip_bytes(layout) + start
    copied = chip_bytes(copies.layout(setting.model, setting.mesh, setting.dtype)) - chip_bytes(base)
    draws = [drawn for _, (drawn, *_), _ in setting.draws()]
    params, offload = layout.policy.params, setting.config.mesh.offload
    masters, sums = chip_bytes(params), chip_bytes(sums_layout(params))
    sampled = start if offload else state
    return {
        "copy": Estimate((start + masters if offload else state) + copied, copied),
        "prefill": Estimate(sampled + copied, max(_prefill_bytes(setting, drawn) for drawn in draws)),
        "decode": Estimate(sampled + copied, max(_decode_bytes(setting, drawn) for drawn in draws)),
        "gradient": Estimate(state + sums, _gradient_bytes(setting, masters, sums)),
    }


def found(setting: Setting, programs: Sequence[Program], before: Mapping[str, float]) -> dict[str, float]:
    """By how much XLA's account of `programs` differs from their estimates: factors of Estimate.more. Those of earlier
    settings (`before`) stay where a program did not compile."""
    factors = dict(before)
    for name, estimate in estimates(setting).items():
        sizes = [program.together for program in programs if program.name == name]
        if sizes:
            factors[name] = (max(sizes) - estimate.state) / estimate.more
    return factors


def nearest(setting: Setting, memory: float, factors: Mapping[str, float]) -> Iterator[dict[str, int]]:
    """Changes of train.micro_tokens, rollout.rows and mesh.tensor with which it should fit, those of the fewest
    doublings and halvings first. factors: as `found` has them, 1 for programs that are not there."""
    config, mesh = setting.config, setting.mesh
    given = {
        "mesh.tensor": mesh.shape["tensor"],
        "rollout.rows": config.rollout.rows,
        "train.micro_tokens": config.train.micro_tokens,
    }
    row = programs.row_tokens(config)
    ways = (
        _doublings(given["mesh.tensor"], math.gcd(mesh.size // mesh.shape["data"], setting.model.heads)),
        _halvings(given["rollout.rows"], places.SHARING * mesh.shape["data"]),
        _halvings(given["train.micro_tokens"], row),
    )
    tries = sorted(itertools.product(*map(enumerate, ways)), key=lambda each: sum(steps for steps, _ in each))
    for each in tries[1:]:
        change = {name: value for (name, old), (_, value) in zip(given.items(), each, strict=True) if value != old}
        if "mesh.tensor" in change and config.mesh.fsdp != -1:
            change["mesh.fsdp"] = -1
        try:
            other = changed(setting, change)
        except InputError:
            continue  # a mesh that does not divide the devices
        needs = estimates(other).items()
        most = max(one.state + one.more * (factors[name] if name in factors else 1) for name, one in needs)
        if most <= MARGIN * memory:
            yield change


def changed(setting: Setting, change: dict[str, int]) -> Setting:
    """The setting with other values. Raises InputError for a mesh that does not fit the devices."""
    config, mesh = ConfigDict(setting.config.to_dict()), setting.mesh
    for key, value in change.items():
        section, leaf = key.split(".")
        config[section][leaf] = value
    if "mesh.tensor" in change:
        devices = list(mesh.devices.flat)
        mesh = make_mesh(data=mesh.shape["data"], fsdp=-1, tensor=change["mesh.tensor"], devices=devices)
    model, _ = programs.with_kernel(config, setting.model, mesh)
    return dataclasses.replace(setting, config=FrozenConfigDict(config), model=model, mesh=mesh)


def _prefill_bytes(setting: Setting, drawn: Draw) -> float:
    """Bytes of the keys and values that a prefill returns, of what one layer computes, and of the embedding table,
    which is gathered if the vocabulary is split."""
    model, mesh, item = setting.model, setting.mesh, setting.dtype.itemsize
    tokens = drawn.prefill * setting.prompt_tokens / mesh.shape["data"]
    kept = (drawn.parts - 1) * tokens * _token_bytes(setting)
    layer = item * (4 * model.width + 3 * model.ffn / mesh.shape["tensor"])
    table = item * model.vocab * model.width if mesh.shape["tensor"] > 1 else 0
    return kept + tokens * (_token_bytes(setting) + layer) + table


def _decode_bytes(setting: Setting, drawn: Draw) -> float:
    """Bytes of the keys and values of prompts (once for each prompt, and once for each group of slots) and of
    responses, and bytes of the logits."""
    config, mesh = setting.config, setting.mesh
    prompts = (drawn.parts * drawn.prefill + drawn.slots.groups) / mesh.shape["data"] * setting.prompt_tokens
    slots = drawn.slots.size / (mesh.shape["data"] * mesh.shape["fsdp"])
    cache = _token_bytes(setting) * (prompts + slots * config.rollout.max_tokens)
    return cache + 4 * 4 * slots * setting.model.vocab


def _token_bytes(setting: Setting) -> float:
    """Bytes of the keys and values of one token on a chip. kv heads are split over `tensor` if it divides them."""
    tensor, model = setting.mesh.shape["tensor"], setting.model
    parts = tensor if model.kv_heads % tensor == 0 else 1
    return cache_bytes(model, 1, itemsize=setting.dtype.itemsize) / parts


def _gradient_bytes(setting: Setting, masters: int, sums: int) -> float:
    """Bytes that the backward pass of the longest micro-batch needs: its gradient, the weights in the type that
    computes, the inputs of all layers (twice, with places split over tensor), what a layer computes, what train.remat
    keeps of the others, and a chunk of logits with its gradient (on TPUs one of them is there in two layouts)."""
    config, model, tensor = setting.config, setting.model, setting.mesh.shape["tensor"]
    tokens = max(config.train.micro_tokens, programs.row_tokens(config))
    item = setting.dtype.itemsize
    kept = 2 * item * tokens * model.width * model.layers / tensor
    layer = 4 * tokens * (8 * model.width + (3 * model.ffn + 2 * model.heads * model.head_dim) / tensor)
    head = model.vocab / tensor * (item * model.width + 3 * 4 * min(config.train.chunk_tokens, tokens))
    products = model.width + (2 * model.ffn + (model.heads + 2 * model.kv_heads) * model.head_dim) / tensor
    of_others = {"full": 0.0, "dots": item * tokens * (model.width + products), "none": layer}[config.train.remat]
    cast = 0 if masters < sums and item == 2 else sums * item / 4  # masters in bfloat16 compute as they are
    return masters + cast + kept + layer + (model.layers - 1) * of_others + head


def _doublings(start: int, most: int) -> list[int]:
    return [start * 2**i for i in range(20) if i == 0 or start * 2**i <= most]


def _halvings(start: int, least: int) -> list[int]:
    return [start // 2**i for i in range(20) if i == 0 or start // 2**i >= least]

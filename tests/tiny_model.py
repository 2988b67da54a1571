"""Three tiny decoders with weights that nothing averages out, for tests: sharp logits, norms far from 1, biases."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from ttrl_jax.learn.logprobs import response_logprobs
from ttrl_jax.model import decoder
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.rope import Rope
from ttrl_jax.model.sharding import MESH_AXES, make_mesh, shardings

# head_dim is not D / N, kv heads are shared, and the vocabulary is split over `tensor`.
LLAMA = ModelConfig(
    family="llama",
    vocab=64,
    width=16,
    ffn=24,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=6,
    norm_eps=1e-6,
    rope=Rope(),
    tied=True,
    max_positions=256,
)
# The vocabulary is odd, so it is not.
QWEN2 = ModelConfig(
    family="qwen2",
    vocab=61,
    width=16,
    ffn=24,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=4,
    norm_eps=1e-5,
    rope=Rope(theta=500.0),
    tied=False,
    max_positions=256,
)
# Norms of queries and keys, a window in one layer, a stretched rotation.
QWEN3 = ModelConfig(
    family="qwen3",
    vocab=64,
    width=16,
    ffn=24,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    norm_eps=1e-6,
    rope=Rope("yarn", 100.0, 4.0, 16, slow=1.0, fast=4.0, scale=1.1),
    tied=False,
    max_positions=64,
    windows=(None, 5),
)

MESHES = [(1, 8, 1), (2, 2, 2)]


def forward_of(config: ModelConfig, *, temperature: float, remat: str = "none", unroll: bool = True):
    """What an Update of a policy computes, in float32."""

    def forward(params, base, micro):
        way = dict(temperature=temperature, dtype=jnp.float32, remat=remat, entropy_gradient=True, unroll=unroll)
        return response_logprobs(params, config, micro, **way)

    return forward


def random_params(config: ModelConfig, *, seed: int = 0, std: float = 0.3) -> decoder.Params:
    """Normal weights; norms and biases too (norms around 1), unlike a real start. Host arrays."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        values = rng.normal(size=shape.shape) * std
        return np.float32(values + 1 if "norm" in jax.tree_util.keystr(path) else values)

    return jax.tree.map_with_path(leaf, decoder.shapes(config))


@contextmanager
def on_mesh(shape: tuple[int, int, int]):
    """Run on CPU devices as data x fsdp x tensor = `shape`: on all 8 of them, or on the first for (1, 1, 1)."""
    if shape == (1, 1, 1):
        types = (jax.sharding.AxisType.Auto,) * 3
        mesh = jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=jax.devices()[:1])
    else:
        mesh = make_mesh(data=shape[0], fsdp=shape[1], tensor=shape[2])
    with jax.set_mesh(mesh):
        yield mesh


def placed(params: decoder.Params, config: ModelConfig, mesh: jax.sharding.Mesh) -> decoder.Params:
    """The masters laid over the mesh as a run lays them."""
    return jax.device_put(params, shardings(decoder.logical_axes(config), decoder.shapes(config), mesh))


def all_logits(params: decoder.Params, config: ModelConfig, ids: np.ndarray) -> jax.Array:
    """float32 logits [R, T, W] of whole rows, by the training forward."""
    return _all_logits(params, jnp.asarray(ids), config)


def _forward(params, ids, config):
    return decoder.logits(params, config, decoder.forward(params, config, ids, dtype=jnp.float32, remat="none"))


_all_logits = jax.jit(_forward, static_argnums=2)


def sampling_copy(params: decoder.Params, config: ModelConfig, mesh: jax.sharding.Mesh) -> decoder.Params:
    """float32 weights for sampling, laid over the mesh as a run lays them."""
    copy = decoder.sampling_weights(jax.tree.map(jnp.asarray, params), config, jnp.float32)
    layout = shardings(decoder.sampling_axes(config), copy, mesh, without=("embed",))
    return jax.device_put(copy, layout)

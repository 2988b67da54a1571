"""Semantics: one announced compile per signature, the same results as jax.jit, and cheap calls in between."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from ttrl_jax.run.compiled import Compiled, keep_programs, lines


def scale(state, x, *, power=1):
    return jax.tree.map(lambda leaf: leaf * x.sum() ** power, state)


def hear(said):
    """An Announce that keeps what it is told."""
    return lambda *told: said.append(told)


@pytest.fixture
def said():
    return []


def test_compiles_are_announced_with_shapes_before_and_seconds_after(said):
    f = Compiled("update", scale, announce=hear(said), static_argnames=("power",))
    state = {"a": jnp.ones((1000, 250)), "b": jnp.ones(4, jnp.bfloat16)}
    out = f(state, np.ones((2, 3), np.int32), power=2)
    np.testing.assert_array_equal(out["a"], np.full((1000, 250), 36.0))
    shapes = "state 2 arrays 1.0 MB, x int32[2, 3], power=2"
    assert said[0] == ("update", shapes, None) and said[1] == ("update", shapes, pytest.approx(f.compile_seconds))
    assert 0 < f.compile_seconds < 60 and len(said) == 2


def test_words_tell_programs_of_a_name_apart(said):
    f = Compiled("decode", scale, announce=hear(said), words=lambda state, x, **rest: f"{len(x)} rows")
    f({"a": jnp.ones(4)}, jnp.ones(2))
    assert [each[0] for each in said] == ["decode, 2 rows"] * 2


def test_lines_are_for_what_takes_long_or_for_all_with_shapes(said):
    for announce in (lines(said.append), lines(said.append, details=True)):
        for seconds in (None, 0.2, None, 3.62):
            announce("decode, 2 rows", "x float32[2]", seconds)
    assert said == [
        "compiling decode, 2 rows ... 3.6 s",
        "compiling decode, 2 rows (x float32[2]) ... 0.2 s",
        "compiling decode, 2 rows (x float32[2]) ... 3.6 s",
    ]


def test_each_new_signature_compiles_once(said):
    f = Compiled("f", scale, announce=hear(said), static_argnames=("power",))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    calls = [
        lambda: f({"a": jnp.ones(4)}, jnp.ones(2)),
        lambda: f({"a": jnp.ones(8)}, jnp.ones(2)),  # shape
        lambda: f({"a": jnp.ones(4, jnp.int32)}, jnp.ones(2)),  # dtype
        lambda: f({"b": jnp.ones(4)}, jnp.ones(2)),  # structure
        lambda: f({"a": jnp.ones(4)}, jnp.ones(2), power=2),  # static
        lambda: f({"a": jnp.ones(4)}, jnp.ones(2), power=3),
        lambda: f(state={"a": jnp.ones(4)}, x=jnp.ones(2)),  # by keyword
        lambda: f({"a": jax.device_put(jnp.ones(4), split)}, jnp.ones(2)),  # sharding
        lambda: f({"a": 2}, jnp.ones(2)),  # weak type: int * float32 is float32
        lambda: f({"a": np.int32(2)}, jnp.ones(2)),
    ]
    values = [jax.tree.leaves(call())[0] for call in calls]
    assert len(said) == 2 * len(calls)
    again = [jax.tree.leaves(call())[0] for call in calls]
    assert len(said) == 2 * len(calls)
    for first, second in zip(values, again, strict=True):
        assert first.dtype == second.dtype == jnp.float32
        np.testing.assert_array_equal(first, second)
    assert [float(v.ravel()[0]) for v in values] == [2, 2, 2, 2, 4, 8, 2, 2, 4, 4]
    assert values[7].sharding.is_equivalent_to(split, 1)


def test_the_mesh_in_context_is_part_of_the_signature(said):
    def split(x):
        return jax.lax.with_sharding_constraint(x, PartitionSpec("data"))

    f = Compiled("f", split, announce=hear(said))
    for count in (4, 2):
        kinds = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((count,), ("data",), axis_types=kinds, devices=jax.devices()[:count])
        with jax.set_mesh(mesh):
            assert len(f(np.ones(8)).addressable_shards) == count
    assert len(said) == 4


def test_donated_arguments_are_given_away_and_outputs_laid_out_as_asked(said):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    layout, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    f = Compiled("f", scale, announce=hear(said), donate_argnames=("state",), out_shardings=layout)
    state, x = {"a": jax.device_put(jnp.ones(8), layout)}, jax.device_put(jnp.ones(3), everywhere)
    for expected in (3.0, 9.0):
        former, state = state, f(state, x)
        assert former["a"].is_deleted() and not x.is_deleted()
        assert state["a"].sharding == layout
        np.testing.assert_array_equal(state["a"], np.full(8, expected))
    assert len(said) == 2


def test_random_keys_are_arguments_like_any_other(said):
    f = Compiled("draw", lambda key: jax.random.uniform(key, (3,)), announce=hear(said))
    for seed in (0, 1):
        key = jax.random.key(seed)
        np.testing.assert_array_equal(f(key), jax.random.uniform(key, (3,)))
    assert len(said) == 2 and said[0] == ("draw", "key key<fry>[]", None)


def test_static_arguments_must_be_keyword_only(said):
    with pytest.raises(TypeError, match="static argument n of f must be keyword-only"):
        Compiled("f", lambda x, n: x * n, announce=hear(said), static_argnames=("n",))


def test_dispatch_of_fifty_leaves_costs_less_than_half_a_millisecond(said):
    state = {str(i): jnp.ones((i + 1, 4)) for i in range(50)}
    first = lambda state: state["0"]  # noqa: E731  # nearly nothing to compute, so that the call is all dispatch
    ours, plain = Compiled("f", first, announce=hear(said)), jax.jit(first)

    def best(call):
        times = []
        for _ in range(200):
            start = time.perf_counter()
            call(state)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best(ours) - best(plain) < 0.5e-3


@pytest.fixture
def own_settings():
    """JAX's settings as a user has them; afterwards those of the tests."""
    user = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": None,
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in user}
    for values in (user, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # the folder is looked up once
        if values is user:
            yield


def test_programs_are_kept_on_disk_and_taken_from_there(own_settings, tmp_path, monkeypatch, said):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "ttrl_jax" / "programs"
    for _ in range(2):
        keep_programs(said.append)
    assert said == [f"programs  compiled ones are kept in {folder}"]

    def call():
        return Compiled("f", lambda x: jnp.sin(x) @ x + 41, announce=hear(said))(np.ones((5, 5), np.float32))

    first, kept = call(), sorted(path.name for path in folder.iterdir())
    assert kept
    jax.clear_caches()
    np.testing.assert_array_equal(call(), first)
    assert {path.name for path in folder.iterdir() if path.name.endswith("-cache")} <= set(kept)


def test_the_compilers_options_reach_it(said):
    x = np.ones((5, 5), np.float32)
    least = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    assert Compiled("f", jnp.sin, announce=hear(said), compiler_options=least)(x).shape == (5, 5)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        Compiled("f", jnp.sin, announce=hear(said), compiler_options={"xla_no_such_option": 1})(x)


def test_jaxs_own_settings_go_first(own_settings, tmp_path, said):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    keep_programs(said.append)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    keep_programs(said.append)
    assert jax.config.jax_compilation_cache_dir is None and said == []

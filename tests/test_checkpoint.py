"""Semantics: what is saved comes back bitwise, on any mesh, whatever killed the process that saved it."""

import os
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ttrl_jax.errors import InputError
from ttrl_jax.run.checkpoint import Checkpoints, Damaged, check_disk

CPU = os.environ | {"JAX_PLATFORMS": "cpu"}


class Layer(NamedTuple):
    kernel: jax.Array
    scale: jax.Array


def mesh_of(shape):
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return jax.sharding.Mesh(devices, ("fsdp", "tensor"))


def state_on(mesh, *, seed=0):
    """Params of three dtypes and two steps of AdamW on them, laid over `mesh`."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "layer": Layer(jax.random.normal(keys[0], (8, 16)), jax.random.normal(keys[1], (16,), jnp.bfloat16)),
        "embed.table": jax.random.normal(keys[2], (32, 8)),
    }
    schedule = optax.cosine_decay_schedule(1e-2, 100)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    moments = optimizer.init(params)
    for _ in range(2):
        updates, moments = optimizer.update(jax.tree.map(jnp.sin, params), moments, params)
        params = optax.apply_updates(params, updates)
    state = {"params": params, "optimizer": moments, "step": jnp.int32(2)}
    return jax.device_put(state, jax.tree.map(lambda leaf: layout(mesh, leaf), state))


def layout(mesh, leaf):
    return NamedSharding(mesh, PartitionSpec("fsdp", "tensor") if leaf.ndim == 2 else PartitionSpec())


def abstract_on(mesh, state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout(mesh, x)), state)


def assert_bitwise(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("shape", [(2, 4), (4, 1), (1, 1)])
def test_restores_bitwise_on_any_mesh(tmp_path, shape):
    state = state_on(mesh_of((2, 4)))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.save(7, state, {"votes": [1, None], "seed": 3})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() == 7
        assert checkpoints.meta(7) == {"votes": [1, None], "seed": 3}
        mesh = mesh_of(shape)
        restored = checkpoints.restore(7, abstract_on(mesh, state))
    assert_bitwise(restored, state)
    kernel = restored["params"]["layer"].kernel
    assert kernel.sharding == NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    assert kernel.addressable_shards[0].data.shape == (8 // shape[0], 16 // shape[1])
    assert type(restored["optimizer"][1][0]) is type(state["optimizer"][1][0])


def test_restores_a_part_alone(tmp_path):
    state, mesh = state_on(mesh_of((2, 4))), mesh_of((8, 1))
    abstract = abstract_on(mesh, state)["params"]
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(7, state, {})
        part = checkpoints.restore_part(7, "params", abstract)
        assert_bitwise(part, state["params"])
        assert part["layer"].kernel.addressable_shards[0].data.shape == (1, 16)
        del abstract["embed.table"]
        with pytest.raises(InputError, match=r"params\.embed\.table \(checkpoint: float32\[32, 8\], this run: nothing"):
            checkpoints.restore_part(7, "params", abstract)


def test_a_donated_state_was_saved_before_it_changed(tmp_path):
    state = {"w": jnp.arange(2_000_000, dtype=jnp.float32)}
    before = np.array(state["w"])
    update = jax.jit(lambda s: jax.tree.map(lambda x: -x - 1, s), donate_argnums=0)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(5):
            state = update(state)
        restored = checkpoints.restore(1, abstract_on(mesh_of((1, 1)), state))
    np.testing.assert_array_equal(restored["w"], before)


def test_keeps_the_newest_and_leaves_a_saved_step_alone(tmp_path):
    mesh = mesh_of((1, 1))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() is None
        with pytest.raises(InputError, match="no checkpoint .*5; the newest is None"):
            checkpoints.meta(5)
        for step in (1, 3, 4):
            assert checkpoints.save(step, state_on(mesh, seed=step), {"step": step})
        assert not checkpoints.save(4, state_on(mesh, seed=99), {"step": 99})
        assert checkpoints.latest() == 4
        assert checkpoints.meta(4) == {"step": 4}
        assert_bitwise(checkpoints.restore(4, abstract_on(mesh, state_on(mesh))), state_on(mesh, seed=4))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4"]


def test_a_part_comes_back_alone_and_bitwise_on_another_mesh(tmp_path):
    state = state_on(mesh_of((1, 1)))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
    mesh = mesh_of((2, 4))
    abstract = abstract_on(mesh, state_on(mesh))["params"]
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        found = checkpoints.restore_part(1, "params", abstract)
        assert_bitwise(found, state["params"])
        assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, abstract)
        with pytest.raises(InputError, match="no checkpoint"):
            checkpoints.restore_part(2, "params", abstract)
        with pytest.raises(InputError, match="of another model"):
            checkpoints.restore_part(1, "params", jax.tree.leaves(abstract))


def test_another_model_is_one_sentence(tmp_path):
    mesh = mesh_of((1, 1))
    state = state_on(mesh)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
        wider = abstract_on(mesh, state | {"step": jnp.zeros((2,), jnp.int32)})
        with pytest.raises(InputError, match=r"step \(checkpoint: int32\[\], this run: int32\[2\]\)"):
            checkpoints.restore(1, wider)
        with pytest.raises(InputError, match=r"critic \(checkpoint: nothing, this run: int32\[\]\)"):
            checkpoints.restore(1, abstract_on(mesh, state | {"critic": state["step"]}))
        fewer = {"params": state["params"], "step": state["step"]}
        with pytest.raises(InputError, match=r"this run: nothing\).*and \d+ more; use the config") as error:
            checkpoints.restore(1, abstract_on(mesh, fewer))
        assert "\n" not in str(error.value)
        half = fewer | {"optimizer": jax.tree.map(lambda x: x.astype(jnp.bfloat16), state["optimizer"])}
        with pytest.raises(InputError, match=r"checkpoint: float32\[32, 8\], this run: bfloat16\[32, 8\]"):
            checkpoints.restore(1, abstract_on(mesh, half))


def test_reading_changes_nothing_in_the_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        Checkpoints(tmp_path / "absent", keep=None)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(3)}, {"a": 1})
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")  # as while another process is saving
    before = sorted(tmp_path.rglob("*"))
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        assert checkpoints.latest() == 1 and checkpoints.meta(1) == {"a": 1}
    assert sorted(tmp_path.rglob("*")) == before


KILLED_WHILE_SAVING = """
import os, signal, sys, time
import jax
from ttrl_jax.run.checkpoint import Checkpoints
big = lambda seed: {"w": jax.random.normal(jax.random.key(seed), (16_000_000,))}
checkpoints = Checkpoints(sys.argv[1], keep=2)
checkpoints.save(1, big(1), {"step": 1})
checkpoints.wait()
checkpoints.save(2, big(2), {"step": 2})
while not any("tmp" in name for name in os.listdir(sys.argv[1])):
    time.sleep(0.001)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_process_killed_while_saving_leaves_the_checkpoint_before(tmp_path):
    child = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)], env=CPU, check=False)
    assert child.returncode == -signal.SIGKILL
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 2 and names[0] == "1" and "tmp" in names[1], names
    mesh = mesh_of((1, 1))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() == 1
        abstract = abstract_on(mesh, {"w": jax.ShapeDtypeStruct((16_000_000,), jnp.float32)})
        first = checkpoints.restore(1, abstract)
        np.testing.assert_array_equal(first["w"], jax.random.normal(jax.random.key(1), (16_000_000,)))
        assert checkpoints.save(2, {"w": -first["w"]}, {"step": "again"})
        assert checkpoints.latest() == 2 and checkpoints.meta(2) == {"step": "again"}
        np.testing.assert_array_equal(checkpoints.restore(2, abstract)["w"], -np.asarray(first["w"]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_a_half_deleted_old_checkpoint_is_in_nobodys_way(tmp_path):
    state = {"w": jnp.ones(3)}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {"step": 2})
    shutil.rmtree(tmp_path / "1" / "state")
    (tmp_path / "1" / "_CHECKPOINT_METADATA").unlink()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() == 2
        with pytest.raises(InputError, match="damaged"):
            checkpoints.restore(1, abstract_on(mesh_of((1, 1)), state))
        checkpoints.save(3, state, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


def test_disk_that_is_too_small_is_refused(tmp_path):
    absent = tmp_path / "run" / "checkpoints"
    check_disk(absent, needed_bytes=1)
    with pytest.raises(InputError, match=r"needs 1000000000\.0 GB of disk for checkpoints and has 0\.0 MB of them and"):
        check_disk(absent, needed_bytes=10**18)
    assert not absent.exists() and not absent.parent.exists()


def test_what_lies_there_already_is_part_of_what_is_needed(tmp_path, monkeypatch):
    """A run that fits its disk goes on there: two checkpoints of three are written, and there is room for one more."""
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "state").write_bytes(bytes(14_000_000))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(30_000_000, 0, 8_000_000))
    check_disk(tmp_path, needed_bytes=21_600_000)
    with pytest.raises(InputError, match=r"needs 22\.5 MB .* has 14\.0 MB of them and 8\.0 MB free"):
        check_disk(tmp_path, needed_bytes=22_500_000)


def files_of(checkpoint):
    return sorted(str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file())


def test_a_damaged_checkpoint_is_never_read_in_part(tmp_path):
    """Each of its files emptied, cut in half, and gone, in turn: it comes back whole, bit by bit, or is said to be
    damaged."""
    state, meta = state_on(mesh_of((2, 4))), {"votes": [1, None], "seed": 3}
    with Checkpoints(tmp_path / "whole", keep=1) as checkpoints:
        checkpoints.save(7, state, meta)
    abstract, damages = abstract_on(mesh_of((1, 1)), state), 0
    for i, name in enumerate(files_of(tmp_path / "whole" / "7")):
        for way in ("empty", "half", "gone"):
            copy = tmp_path / f"{i}-{way}"
            shutil.copytree(tmp_path / "whole", copy)
            path = copy / "7" / name
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2] if way == "half" else b"")
            if way == "gone":
                path.unlink()
            with Checkpoints(copy, keep=1) as checkpoints:
                if 7 not in checkpoints.steps():  # Orbax itself sees that it is none
                    continue
                try:
                    assert checkpoints.meta(7) == meta
                    assert_bitwise(checkpoints.restore(7, abstract), state)
                except Damaged as error:
                    assert "is damaged" in str(error) and "Traceback" not in str(error)
                    damages += 1
            shutil.rmtree(copy)
    assert damages >= 6


def test_a_damaged_checkpoint_is_set_aside_and_its_step_is_saved_again(tmp_path):
    state = {"w": jnp.arange(5.0)}
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {"step": step})
    (tmp_path / "checkpoints" / "2" / "meta" / "metadata").write_text("")
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.steps() == [2, 1]
        with pytest.raises(Damaged, match="checkpoints/2 is damaged"):
            checkpoints.meta(2)
        assert checkpoints.set_aside(2) == tmp_path / "damaged" / "2" and checkpoints.steps() == [1]
        assert checkpoints.save(2, state, {"step": "again"})
        assert checkpoints.meta(2) == {"step": "again"} and checkpoints.steps() == [2, 1]
    assert (tmp_path / "damaged" / "2" / "state").is_dir()

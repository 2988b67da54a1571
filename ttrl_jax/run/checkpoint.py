"""Checkpoints through Orbax, signals that ask for one, and the disk they need.

A checkpoint is a folder named by its step that holds two items: `state`, arrays only, and `meta`, plain JSON.
Orbax writes into a temporary folder beside it and renames that as the very last act, so a folder with a
number for a name is complete.

The state travels as a flat dict from the path of a leaf ("models.policy.params.embed") to its array. Orbax thus
never meets the containers (NamedTuples of optax, dataclasses, NNX states), and what is restored has exactly
the caller's tree structure.
"""

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from ttrl_jax.errors import InputError
from ttrl_jax.run import distributed, places

PyTree = Any
_NAMED_IN_ERRORS = 3  # how many differing leaves an error message lists


class Checkpoints:
    """The checkpoints of one run folder. Every process of a run makes the same calls in the same order.

    With `keep=None` the folder is opened for reading only: nothing in it is made, cleaned or deleted, so that
    another process may be writing it at the same time.
    """

    def __init__(self, directory: str | Path, *, keep: int | None):
        """Open `directory`, made if need be; remains of interrupted saves are removed.

        Args:
          keep: number of complete checkpoints that stay, the newest ones; None opens for reading.

        Raises:
          InputError: opened for reading, and there is no such folder.
          ValueError: `keep` is below 1.
        """
        self.directory = places.absolute(directory)
        reading = keep is None
        if reading and not self.directory.is_dir():
            raise InputError(f"there are no checkpoints in {self.directory}: no such folder")
        if not reading and keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=not reading,
                cleanup_tmp_directories=not reading,
                save_root_metadata=False,
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            ),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()},
        )

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> bool:
        """Start saving `state` after `step` finished training steps; the writing goes on in the background.

        Args:
          step: number of finished training steps, the name of the checkpoint.
          state: pytree whose leaves are all jax arrays. The caller may donate them once this has returned.
          meta: JSON object saved beside the state.

        Returns:
          False, with nothing done, if this step has a complete checkpoint (or one on its way) already.
        """
        if step in self._manager.all_steps():
            return False
        flat, _ = _flatten(state)
        for path, leaf in flat.items():
            if not isinstance(leaf, jax.Array):
                raise TypeError(f"state leaf {path} is {type(leaf).__name__}, expected a jax array")
        items = ocp.args.Composite(state=ocp.args.StandardSave(flat), meta=ocp.args.JsonSave(dict(meta)))
        with _full_disk():
            return self._manager.save(step, args=items, force=True)  # forced: the caller decides when to save

    def latest(self) -> int | None:
        """The highest step with a complete checkpoint, or None."""
        self.wait()
        return self._manager.latest_step()

    def restore(self, step: int, abstract: PyTree) -> PyTree:
        """Read the state of `step` into the structure and layout of `abstract`, on any mesh.

        Args:
          abstract: pytree of jax.ShapeDtypeStruct, each with the sharding it shall have here.

        Returns:
          The same tree with jax arrays in it, bitwise as saved.

        Raises:
          InputError: there is no such checkpoint, or its leaves, shapes or dtypes are others, so that it is
            one of another model or optimizer.
        """
        wanted, structure = _flatten(abstract)
        for path, leaf in wanted.items():
            if leaf.sharding is None:
                raise TypeError(f"abstract leaf {path} has no sharding: where shall it be restored to?")
        where = self._require(step, "state")
        saved = dict(self._manager.item_metadata(step)["state"].items())
        wanted = {_spelled(path, saved): leaf for path, leaf in wanted.items()}
        _require_same(wanted, saved, where=where)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
        state = self._manager.restore(step, args=items)["state"]
        return jax.tree.unflatten(structure, [state[path] for path in wanted])

    def restore_part(self, step: int, name: str, abstract: PyTree) -> PyTree:
        """Read one part of the saved state, such as "models.policy.params", and nothing else of it; otherwise as
        `restore`."""
        leaves, structure = _flatten(abstract)
        where = self._require(step, "state")
        saved = dict(self._manager.item_metadata(step)["state"].items())
        wanted = {_spelled(f"{name}.{path}", saved): leaf for path, leaf in leaves.items()}
        prefix = _spelled(f"{name}.{next(iter(leaves))}", saved).removesuffix(next(iter(leaves)))
        _require_same(wanted, {path: leaf for path, leaf in saved.items() if path.startswith(prefix)}, where=where)
        # The manager's own handler reads a state whole or not at all.
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            args = ocp.args.PyTreeRestore(
                wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
            )
            state = reader.restore(where / "state", args=args)
        return jax.tree.unflatten(structure, [state[path] for path in wanted])

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON object saved beside the state of `step`; InputError if there is no such checkpoint."""
        self._require(step, "meta")
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def wait(self) -> None:
        """Return when the save in progress is on disk; raises what went wrong with it."""
        with _full_disk():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the save in progress and let go of the folder."""
        self.wait()
        self._manager.close()

    def _require(self, step: int, item: str) -> Path:
        """Wait for the save in progress and return the folder of `step`; InputError if it lacks `item`."""
        self.wait()
        where = self.directory / str(step)
        if not where.is_dir():
            raise InputError(f"there is no checkpoint {where}; the newest is {self._manager.latest_step()}")
        if not (where / item).is_dir():
            raise InputError(f"the checkpoint {where} is damaged, it has no {item}: delete it to use the one before")
        return where

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # Orbax waits for all processes to finish a save. After an error the others may never come.
        if exception == (None, None, None) or not distributed.several():
            self.close()


@contextlib.contextmanager
def _full_disk() -> Iterator[None]:
    """Turn what Orbax raises for a full disk, a ValueError, into the OSError that it is."""
    try:
        yield
    except ValueError as error:
        if "No space left" not in str(error):
            raise
        raise OSError(errno.ENOSPC, "a checkpoint could not be written") from error


def _spelled(path: str, saved: Mapping[str, Any]) -> str:
    """The path of a leaf as a checkpoint has it: before models had names, there was the policy alone."""
    earlier = path.removeprefix("models.policy.")
    return earlier if earlier in saved and path not in saved else path


def _flatten(tree: PyTree) -> tuple[dict[str, Any], jax.tree_util.PyTreeDef]:
    """Leaves by dotted path, in tree order, and the structure to put them back into."""
    leaves, structure = jax.tree.flatten_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError("two leaves of the state have the same path")
    return flat, structure


def _require_same(wanted: dict[str, Any], saved: dict[str, Any], *, where: Path) -> None:
    """Raise InputError naming the first leaves that differ in presence, shape or dtype."""
    differing = []
    for path in sorted(wanted.keys() | saved.keys()):
        here = _describe(wanted[path]) if path in wanted else "nothing"
        there = _describe(saved[path]) if path in saved else "nothing"
        if here != there:
            differing.append(f"{path} (checkpoint: {there}, this run: {here})")
    if differing:
        more = len(differing) - _NAMED_IN_ERRORS
        listed = "; ".join(differing[:_NAMED_IN_ERRORS]) + (f"; and {more} more" if more > 0 else "")
        raise InputError(
            f"the checkpoint {where} is of another model or optimizer than this config asks for, it differs "
            f"in {listed}; use the config that it was made with, or another run folder"
        )


def _describe(leaf: Any) -> str:
    return f"{jax.numpy.dtype(leaf.dtype).name}{list(leaf.shape)}"


class Interrupt:
    """SIGINT and SIGTERM as a flag: `signum` is None until one came, then its number.

    The first signal is noted and announced on stderr, and the program goes on until it looks at `signum`; a
    second one does what it does by default and ends the process at once. Leaving the block puts the former
    handlers back. For the main thread only, where Python delivers signals: entering elsewhere raises
    ValueError.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signum = number
        for each in self._former:
            signal.signal(each, signal.SIG_DFL)
        # os.write, as print may be interrupted half-way by this very handler and must not be re-entered.
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: will save and leave at the next safe point; once more stops at once\n".encode())


def check_disk(directory: str | Path, *, needed_bytes: int) -> None:
    """Raise InputError if the disk of `directory`, which need not exist yet, has not `needed_bytes` free."""
    if places.in_bucket(directory):  # which does not fill up
        return
    existing = Path(directory).resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise InputError(
            f"{directory} needs {needed_bytes / 1e9:.2f} GB of free disk for checkpoints and has "
            f"{free / 1e9:.2f} GB; free some, keep fewer checkpoints, or choose another --workdir"
        )

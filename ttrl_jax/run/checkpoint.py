"""Checkpoints through Orbax, and the disk they need.

A checkpoint is a folder named by its step that holds two items: `state`, arrays only, and `meta`, plain JSON.
Orbax writes into a temporary folder beside it and renames that as the very last act, so a folder with a
number for a name is complete.

The state travels as a flat dict from the path of a leaf ("models.policy.params.embed") to its array. Orbax thus
never meets the containers (NamedTuples of optax, dataclasses, NNX states), and what is restored has exactly
the caller's tree structure.
"""

import contextlib
import errno
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from etils import epath

from ttrl_jax.errors import InputError
from ttrl_jax.run import distributed, places

PyTree = Any
_NAMED_IN_ERRORS = 3  # how many differing leaves an error message lists
_SET_ASIDE = "damaged"  # beside the folder of checkpoints, for those that could not be read
# What Orbax, TensorStore and JSON raise for files that are cut off or missing. Too little memory is none of these.
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError)


class Damaged(InputError):
    """A checkpoint that cannot be read."""


class _Kept:
    """A preservation policy of Orbax: the newest checkpoints, and those of `steps`."""

    def __init__(self, newest: int | None):
        self._newest, self.steps = newest, frozenset()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        first = 0 if self._newest is None else len(checkpoints) - self._newest
        return [i >= first or each.step in self.steps for i, each in enumerate(checkpoints)]


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
        self._saved_at = time.monotonic()
        reading = keep is None
        if reading and not self.directory.is_dir():
            raise InputError(f"there are no checkpoints in {self.directory}: no such folder")
        if not reading and keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._kept = _Kept(keep)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=not reading,
                cleanup_tmp_directories=not reading,
                save_root_metadata=False,
                preservation_policy=self._kept,
            ),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()},
        )

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any], *, best: Collection[int] = ()) -> bool:
        """Start saving `state` after `step` finished training steps; the writing goes on in the background.

        Args:
          step: number of finished training steps, the name of the checkpoint.
          state: pytree whose leaves are all jax arrays. The caller may donate them once this has returned.
          meta: JSON object saved beside the state.
          best: steps whose checkpoints stay besides the newest ones, until the next save.

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
        self._saved_at, self._kept.steps = time.monotonic(), frozenset(best)
        with _full_disk():
            return self._manager.save(step, args=items, force=True)  # forced: the caller decides when to save

    def seconds_since(self) -> float:
        """Since the last save, or since this was opened."""
        return time.monotonic() - self._saved_at

    def latest(self) -> int | None:
        """The highest step with a complete checkpoint, or None."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, the newest first."""
        self.wait()
        return sorted(self._manager.all_steps(), reverse=True)

    def set_aside(self, step: int) -> Path:
        """Move a checkpoint that cannot be read away, so that its step can be saved again; where it is then."""
        aside = epath.Path(self.directory.parent / _SET_ASIDE / str(step))
        if distributed.leader():
            aside.parent.mkdir(exist_ok=True)
            aside.rmtree(missing_ok=True)  # of the same step, from a former time
            epath.Path(self.directory / str(step)).rename(aside)
        distributed.together(self._manager.reload)
        return aside

    def restore(self, step: int, abstract: PyTree) -> PyTree:
        """Read the state of `step` into the structure and layout of `abstract`, on any mesh.

        Args:
          abstract: pytree of jax.ShapeDtypeStruct, each with the sharding it shall have here.

        Returns:
          The same tree with jax arrays in it, bitwise as saved.

        Raises:
          InputError: there is no such checkpoint, or its leaves, shapes or dtypes are others, so that it is
            one of another model or optimizer.
          Damaged: its files cannot be read.
        """
        wanted, structure = _flatten(abstract)
        for path, leaf in wanted.items():
            if leaf.sharding is None:
                raise TypeError(f"abstract leaf {path} has no sharding: where shall it be restored to?")
        where = self._require(step, "state")
        saved = self._saved(step, where)
        wanted = {_spelled(path, saved): leaf for path, leaf in wanted.items()}
        _require_same(wanted, saved, where=where)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
        with _readable(where):
            state = self._manager.restore(step, args=items)["state"]
        return jax.tree.unflatten(structure, [state[path] for path in wanted])

    def restore_part(self, step: int, name: str, abstract: PyTree) -> PyTree:
        """Read one part of the saved state, such as "models.policy.params", and nothing else of it, in the dtypes that
        it was saved in; otherwise as `restore`."""
        leaves, structure = _flatten(abstract)
        where = self._require(step, "state")
        saved = self._saved(step, where)
        wanted = {_spelled(f"{name}.{path}", saved): leaf for path, leaf in leaves.items()}
        wanted = {path: _as_saved(leaf, saved[path]) if path in saved else leaf for path, leaf in wanted.items()}
        prefix = _spelled(f"{name}.{next(iter(leaves))}", saved).removesuffix(next(iter(leaves)))
        _require_same(wanted, {path: leaf for path, leaf in saved.items() if path.startswith(prefix)}, where=where)
        # The manager's own handler reads a state whole or not at all.
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            args = ocp.args.PyTreeRestore(
                wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
            )
            with _readable(where):
                state = reader.restore(where / "state", args=args)
        return jax.tree.unflatten(structure, [state[path] for path in wanted])

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON object saved beside the state of `step`; InputError if there is no such checkpoint."""
        with _readable(self._require(step, "meta")):
            return dict(self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"])

    def _saved(self, step: int, where: Path) -> dict[str, Any]:
        """Shape and dtype of each leaf in the checkpoint of `step`."""
        with _readable(where):
            return dict(self._manager.item_metadata(step)["state"].items())

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
            raise Damaged(f"the checkpoint {where} is damaged, it has no {item}: delete it to use the one before")
        return where

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # Orbax waits for all processes to finish a save. After an error the others may never come.
        if exception == (None, None, None) or not distributed.several():
            self.close()


@contextlib.contextmanager
def _readable(where: Path) -> Iterator[None]:
    """Turn what is raised for files that cannot be read into Damaged."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if type(error) is Exception else error  # so Orbax wraps what TensorStore raises
        if not isinstance(cause, _DAMAGE):
            raise
        reason = (str(cause) or repr(cause)).splitlines()[0][:200]
        raise Damaged(
            f"the checkpoint {where} is damaged ({type(cause).__name__}: {reason}): delete it to use the one before"
        ) from error


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


def _as_saved(leaf: Any, saved: Any) -> jax.ShapeDtypeStruct:
    """The layout of a leaf in the dtype that it was saved in: who trained the weights said how they are held."""
    return jax.ShapeDtypeStruct(leaf.shape, saved.dtype, sharding=leaf.sharding)


def _describe(leaf: Any) -> str:
    return f"{jax.numpy.dtype(leaf.dtype).name}{list(leaf.shape)}"


def check_disk(directory: str | Path, *, needed_bytes: int) -> None:
    """Raise InputError if `needed_bytes` of checkpoints do not fit on the disk of `directory`, which need not exist
    yet. Those that are there already are part of them."""
    if places.in_bucket(directory):  # which does not fill up
        return
    existing = Path(directory).resolve()
    there = sum(path.stat().st_size for path in existing.rglob("*") if path.is_file())
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if there + free < needed_bytes:
        raise InputError(
            f"{directory} needs {size(needed_bytes)} of disk for checkpoints and has {size(there)} of them and "
            f"{size(free)} free; free some, keep fewer (checkpoint.keep), or choose another --workdir"
        )


def size(count: int) -> str:
    """Bytes in words: "12.3 MB", "1.5 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"

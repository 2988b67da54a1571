"""The run folder: which config, model and questions it belongs to. Everything else in it is written by its own module.

The folder of an evaluation is one of the same kind: it too belongs to one config, model and sets of questions.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ttrl_jax.commands import flat
from ttrl_jax.errors import InputError
from ttrl_jax.run.lock import LOCK
from ttrl_jax.run.metrics import write_json

CONFIG, SUMMARY, CHECKPOINTS = "config.json", "summary.json", "checkpoints"
AS_IS = "the model as it is"  # what an evaluation without a run is of

# What the fingerprints of model, questions, canaries, task and scorer tell better than how a path is typed.
_SPELLINGS = ("model.path", "model.adapter", "task", "eval.scorer", "canary.path")
_FINGERPRINTS = {
    "fingerprint": "weights or config in model.path",
    "tokenizer": "tokenizer or chat template in model.path",
    "adapter": "adapters in model.adapter",
}
_SPELLINGS_OF_QUESTIONS = ("data.", "eval.tasks")
# Are no spellings: the order of training, of which an evaluation knows nothing.
_ORDER = ("data.drop_last", "data.order")
# Keys that a run may lack which began before they were there, where that meant something else than their default.
_ABSENT: dict[str, Any] = {"data.drop_last": True, "model.decode_attention": "xla", "rollout.end_of_turn": False}
_USED_BY = {"critic.": "ppo", "prime.": "prime"}  # sections that no other algorithm reads
# What a run that goes on may be given anew. The first change where it computes, and so its rounding.
_ROUNDING = ("mesh.", "rollout.rows", "train.micro_tokens", "train.chunk_tokens", "train.remat")
_ROUNDING += ("model.attention", "model.decode_attention")
_BOOKKEEPING = ("checkpoint.", "stop.", "log.", "eval.every", "eval.tasks", "episodes", "reward.allow_silence")
_SECONDS_TO_SEE = 60  # as long as network disks may believe that there is no such file


@dataclass(frozen=True)
class Identity:
    """The config, model and questions of a run. Paths do not count: files that were moved are the same files."""

    config: dict[str, Any]  # every key, in plain values
    model: dict[str, Any]  # its shape, and the fingerprints of its files
    model_path: str | None  # where it lies here; None for a name on the hub
    questions: dict[str, dict[str, Any]]  # of each set, by name and in their order: "count", "sha256"

    @property
    def episode(self) -> int:
        """Training steps of one pass over the questions. Raises InputError where it is not recorded how many there
        are."""
        if "data" not in self.questions:
            raise InputError("the run is from before it was recorded how many questions it has: give a number of steps")
        count, prompts = self.questions["data"]["count"], self.config["rollout"]["prompts"]
        drops = self.config["data"].get("drop_last", _ABSENT["data.drop_last"])
        return count // prompts if drops else -(-count // prompts)


@dataclass(frozen=True)
class Changes:
    """The changes to a run that is resumed: key -> (value before, value now), and the sets of questions added."""

    keys: dict[str, tuple[Any, Any]]
    added: tuple[str, ...] = ()

    def lines(self, *, step: int, total: int) -> list[str]:
        """What they mean, in sentences, for a run that goes on after `step` of now `total` steps."""
        said = [f"{name}: {now!r} from here on, {before!r} before" for name, (before, now) in self.keys.items()]
        said += [f"eval.tasks: {name} from here on" for name in self.added]
        rounding = [name for name in self.keys if name.startswith(_ROUNDING)]
        if rounding and step:
            said.append(
                f"from step {step} on numbers are rounded otherwise, by {', '.join(rounding)}: the end is not bit by "
                "bit what it would have been"
            )
        if "episodes" in self.keys:
            said.append(f"from step {step} on the learning rate follows the schedule of {total} steps")
        return said


def require_same(folder: Path, now: Identity, *, defaults: Mapping[str, Any], flag: str) -> Changes:
    """The changes that `now` makes to the run in `folder`, all of which are allowed. Writes nothing.

    flag: what sets `folder`, for messages. defaults: those of all keys. A run that lacks a key has its default, since
    the default of a new key is what the program did before; the exceptions are in `as_begun`. Raises InputError if the
    folder holds something else than a run of this config, model and questions.
    """
    if not folder.exists():
        return Changes({})
    if not folder.is_dir():
        raise InputError(f"the run folder {folder} is a file; choose another {flag}")
    if not (folder / CONFIG).is_file():
        if any(entry.suffix != ".tmp" and entry.name != LOCK for entry in folder.iterdir()):
            raise InputError(f"{folder} is not empty and not a run folder (no {CONFIG}); choose another {flag}")
        return Changes({})
    made = made_with(folder, flag=flag)
    known = flat(defaults)
    old = known | {name: value for name, value in _ABSENT.items() if name in known} | flat(made.config)
    new = known | flat(json.loads(json.dumps(now.config)))
    skipped = _SPELLINGS + (_SPELLINGS_OF_QUESTIONS if made.questions else ())
    skipped += tuple(section for section, algorithm in _USED_BY.items() if new.get("algorithm") != algorithm)
    trains = "evaluated" not in new
    skipped += () if trains else ("canary.",)  # which an evaluation does not read
    differing = {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and (trains if name in _ORDER else not name.startswith(skipped))
    }
    refused = {name: pair for name, pair in differing.items() if not _may_change(name, *pair)}
    if refused:
        listed = [f"{name} ({before!r} there, {after!r} now)" for name, (before, after) in refused.items()]
        raise InputError(
            f"{folder} was made with another config, it differs in "
            + ", ".join(listed[:5])
            + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
            + (", which may only grow" if list(refused) == ["episodes"] else "")
            + f"; choose another {flag}"
        )
    require_same_model(folder, now.model, flag=flag)
    return Changes(differing, _require_same_questions(folder, made.questions, now.questions, flag=flag))


def as_begun(folder: Path, *, flag: str) -> dict[str, Any]:
    """What the run in `folder`, which `flag` sets, goes on with: key -> value, of the keys that it lacks and whose
    absence means something else than their default; nothing where there is no run. Raises InputError if it is
    damaged."""
    if not (folder / CONFIG).is_file():
        return {}
    made = flat(made_with(folder, flag=flag).config)
    return {name: value for name, value in _ABSENT.items() if name not in made}


def _may_change(name: str, before: Any, after: Any) -> bool:
    if name == "episodes":
        return after > before
    if name == "eval.tasks":
        return after[: len(before)] == before
    return name.startswith(_ROUNDING + _BOOKKEEPING)


def _require_same_questions(
    folder: Path, old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]], *, flag: str
) -> tuple[str, ...]:
    """The names of the sets that are new. Sets of a run from before they were recorded are taken for the same."""
    for name, before in old.items():
        key = "data.path" if name == "data" else f"{name} in eval.tasks"
        if name not in new:
            raise InputError(f"{folder} was made with {key}, which is missing now; add it, or choose another {flag}")
        if before != new[name]:
            counts = f"{before['count']} then, {new[name]['count']} now"
            raise InputError(
                f"the questions of {key} have changed since {folder} was made ({counts}; ids, texts, truths and order "
                f"count); put the former ones back, or choose another {flag}"
            )
    if list(new)[: len(old)] != list(old):
        raise InputError(
            f"{folder} was made with the sets {', '.join(old)} in this order; add more behind them, or choose another "
            f"{flag}"
        )
    return tuple(new)[len(old) :] if old else ()


def require_same_model(folder: Path, model: Mapping[str, Any], *, flag: str) -> None:
    """Raise InputError if the run in `folder`, which `flag` sets, is not of the model with these fingerprints."""
    old = made_with(folder, flag=flag).model
    # Its shape follows from its files. Of a run from before tokenizers were recorded, the weights alone are known.
    for name, what in _FINGERPRINTS.items():
        # Who only measures or exports a run does not read the adapters that it began with.
        before = old[name] if name in old else None if name == "adapter" else model.get(name)
        if name in model and before != model[name]:
            raise InputError(
                f"{folder} was made with another model: the {what} have changed since; restore them or choose another "
                f"{flag}"
            )


def made_with(folder: Path, *, flag: str) -> Identity:
    """What the run in `folder`, which `flag` sets, is a run of, in the keys of today. Raises InputError.

    Of runs from before these were recorded, model_path is None and questions are none.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder} is not a run folder (no {CONFIG}); give the --workdir of a training run")
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        config, model = made["config"], made["model"]
        if "reward.kind" in flat(config) and "judge" not in config:  # made before there were judges
            kind = config["reward"]["kind"]
            config["judge"] = {"rule": "majority" if kind == "agreement" else kind}
            config["reward"]["kind"] = None
        if isinstance(flat(config).get("train.remat"), bool):  # made before it had names
            config["train"]["remat"] = "full" if config["train"]["remat"] else "none"
        if "checkpoint" in config and "keep" not in (
            config["checkpoint"] or {}
        ):  # an evaluation, from before `evaluated` was its name
            config["evaluated"] = config.pop("checkpoint") or AS_IS
        return Identity(config, model, made.get("model_path"), made.get("questions", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); choose another {flag}") from error


def find_run(path: Path) -> tuple[Path, int | None] | None:
    """The run folder and the step that RUN (step None) or RUN/checkpoints/STEP names; None for any other path."""
    if path.name.isdecimal() and path.parent.name == CHECKPOINTS:
        return path.parent.parent, int(path.name)
    return (path, None) if (path / CHECKPOINTS).is_dir() and (path / CONFIG).is_file() else None


def claim(folder: Path, now: Identity, *, leader: bool = True) -> None:
    """Make the folder a run of `now`, if it is no run yet. The leader does this; the other processes wait until they
    see it. Raises InputError if they do not see it."""
    if not leader:
        _await_claim(folder)
    elif not (folder / CONFIG).is_file():
        write_json(folder / CONFIG, asdict(now))


def renew(folder: Path, now: Identity, changes: Sequence[str], *, step: int, longer: bool = False) -> None:
    """Make the folder of a run that goes on after `step` steps one of `now`, which `require_same` has seen, and keep
    `changes`, what that means, beside it. longer: whether it has more episodes now."""
    made = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    new = {"step": step, "changes": list(changes)} | ({"longer": True} if longer else {})
    said = made.get("changes", []) + ([new] if changes else [])
    wanted = asdict(now) | ({"changes": said} if said else {})
    for name in as_begun(folder, flag="--workdir"):  # still goes on as it began, whatever the default
        section, leaf = name.split(".")
        wanted["config"][section] = {key: value for key, value in wanted["config"][section].items() if key != leaf}
    if made != json.loads(json.dumps(wanted)):
        write_json(folder / CONFIG, wanted)


def longer_since(folder: Path) -> int:
    """After how many steps the run was last made longer; 0 if it never was."""
    made = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return max((each["step"] for each in made.get("changes", []) if each.get("longer")), default=0)


def _await_claim(folder: Path) -> None:
    # On a network disk that may take a while; longer, and it is another folder.
    end = time.monotonic() + _SECONDS_TO_SEE
    while not (folder / CONFIG).is_file():
        if time.monotonic() > end:
            raise InputError(
                f"{folder} has no {CONFIG} here, which process 0 wrote; give all processes a --workdir on a disk that "
                "they share"
            )
        time.sleep(1)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or None. Raises ValueError if it is damaged."""
    path = folder / SUMMARY
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

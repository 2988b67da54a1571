"""The run folder: which config and model it belongs to. Everything else in it is written by its own module.

The folder of an evaluation is one of the same kind: it too belongs to one config and model.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttrl_jax.errors import InputError
from ttrl_jax.run.metrics import write_json

CONFIG, SUMMARY, CHECKPOINTS = "config.json", "summary.json", "checkpoints"

# Sections of algorithms that came later, which a run without them cannot have used.
_LATER = ("critic", "prime")
# Sections that change where a run computes or what it shows, not what it learns.
_MAY_DIFFER = ("mesh", "log")
_SECONDS_TO_SEE = 60  # as long as network disks may believe that there is no such file


def require_same(folder: Path, config: Mapping[str, Any], model: Mapping[str, Any], *, flag: str) -> None:
    """Raise InputError if `folder`, which `flag` sets, holds something else than a run of this config and model.

    Writes nothing.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"the run folder {folder} is a file; choose another {flag}")
    if not (folder / CONFIG).is_file():
        if any(entry.suffix != ".tmp" for entry in folder.iterdir()):
            raise InputError(f"{folder} is not empty and not a run folder (no {CONFIG}); choose another {flag}")
        return
    made, _ = made_with(folder, flag=flag)
    old, new = flat(made), flat(json.loads(json.dumps(config)))
    differing = [
        f"{name} ({old.get(name, 'absent')!r} there, {new.get(name, 'absent')!r} now)"
        for name in sorted(old.keys() | new.keys())
        if name.split(".")[0] not in _MAY_DIFFER
        and not (name.split(".")[0] in _LATER and name not in old)
        and old.get(name) != new.get(name)
    ]
    if differing:
        raise InputError(
            f"{folder} was made with another config, it differs in "
            + ", ".join(differing[:5])
            + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
            + f"; choose another {flag}"
        )
    require_same_model(folder, model, flag=flag)


def require_same_model(folder: Path, model: Mapping[str, Any], *, flag: str) -> None:
    """Raise InputError if the run in `folder`, which `flag` sets, is not of this model."""
    _, old = made_with(folder, flag=flag)
    if old != json.loads(json.dumps(model)):
        raise InputError(
            f"{folder} was made with another model: the files in model.path have changed since; restore them or "
            f"choose another {flag}"
        )


def made_with(folder: Path, *, flag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config, in the keys of today, and the model that the run in `folder`, which `flag` sets, belongs to.

    Raises InputError.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{folder} is not a run folder (no {CONFIG}); give the --workdir of a training run")
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        config, model = made["config"], made["model"]
        if "reward.kind" in flat(config) and "judge" not in config:  # made before there were judges and tasks
            kind = config["reward"]["kind"]
            config["judge"] = {"rule": "majority" if kind == "agreement" else kind}
            config["reward"]["kind"], config["task"], config["train"]["advantage"] = None, "", "std"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); choose another {flag}") from error
    return config, model


def find_run(path: Path) -> tuple[Path, int | None] | None:
    """The run folder and the step that RUN (step None) or RUN/checkpoints/STEP names; None for any other path."""
    if path.name.isdecimal() and path.parent.name == CHECKPOINTS:
        return path.parent.parent, int(path.name)
    return (path, None) if (path / CHECKPOINTS).is_dir() and (path / CONFIG).is_file() else None


def claim(folder: Path, config: Mapping[str, Any], model: Mapping[str, Any], *, leader: bool = True) -> None:
    """Make the folder a run of this config and model, if it is not yet. One process does, the leader; the others wait
    until they see it. Raises InputError where they do not."""
    if not leader:
        _await_claim(folder)
    elif not (folder / CONFIG).is_file():
        write_json(folder / CONFIG, {"config": config, "model": model})


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
    """The summary of a finished run, or None."""
    path = folder / SUMMARY
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one, with names such as "model.path"."""
    found = {}
    for name, value in section.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found

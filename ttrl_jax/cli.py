"""What the commands share: reading the flags and the config, and turning errors into one sentence and an exit code."""

import errno
import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from ttrl_jax import ctrl_c
from ttrl_jax.errors import InputError
from ttrl_jax.run import distributed
from ttrl_jax.run.interrupt import Interrupted, left_behind

# Commands run from a source checkout, whose configs/ lies beside the package; this finds it from any folder.
_CHECKOUT = Path(__file__).resolve().parent.parent

USAGE_ERROR = 2
_FULL = ("the disk is full", "free some space and run the same command again")
_FORBIDDEN = ("that is not permitted here", "choose another place, or see to its permissions")
_ADVICE = {
    errno.ENOSPC: _FULL, errno.EDQUOT: _FULL,
    errno.EROFS: _FORBIDDEN, errno.EACCES: _FORBIDDEN, errno.EPERM: _FORBIDDEN,
}  # fmt: skip
OWN_FLAGS = ("config", "workdir", "checkpoint", "out", "step", "dtype", "topology", "questions", "json", "model")
PROCESS_FLAGS = ("coordinator", "num_processes", "process_id")


def define(kind: Callable[..., Any], name: str, *given: Any) -> None:
    """Define a flag (kind: flags.DEFINE_string ...), if no other command has in the same process."""
    if name not in flags.FLAGS:
        kind(name, *given)


def define_config_flag() -> None:
    """Define --config FILE.py[:ARG] and its overrides --config.a.b=value."""
    if "config" in flags.FLAGS:
        return
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, with an argument after a colon where it takes one; --config.a.b=value overrides a key.",
    )


def define_out_flag() -> None:
    """Define --out, what a command writes."""
    define(flags.DEFINE_string, "out", "", "Folder to write; of a report, the file.")


def define_model_flag() -> None:
    """Define --model, where the model of a run lies now."""
    define(flags.DEFINE_string, "model", "", "Folder or .gguf file that the run began with, if it has been moved.")


def define_process_flags() -> None:
    """Define --coordinator, --num_processes and --process_id. A command that has them calls `join_processes` before it
    uses a device."""
    where = "Of several processes: HOST:PORT of process 0. Unneeded on TPU, GKE, SLURM."
    define(flags.DEFINE_string, "coordinator", "", where)
    define(flags.DEFINE_integer, "num_processes", None, "How many processes there are, likewise.")
    define(flags.DEFINE_integer, "process_id", None, "Which of them this is, from 0, likewise.")


def join_processes() -> None:
    """Join the other processes as the flags say, or the environment. Raises InputError, also without any device."""
    given = flags.FLAGS
    distributed.start(coordinator=given.coordinator, num_processes=given.num_processes, process_id=given.process_id)
    distributed.devices()


def run(
    main: Callable[..., int],
    *,
    doc: str,
    define: Callable[[], None] = lambda: None,
    takes: str | None = None,
    several: bool = False,
) -> int:
    """Parse the flags of sys.argv, call `main`, and return the exit code.

    define: defines the command's own flags, so that importing it defines none.
    takes: what the one argument is called that is no flag, if the command takes one; `main` is called with it.
    several: there may be more than one of it; `main` is called with all.

    That is main's own; 2, with one line on stderr, for an InputError, a flag error, a full disk or a place that may not
    be read or written; 1 for numbers that are no longer finite; 130 for Ctrl-C where main does not see to it; 75 (from
    run/distributed.py) where another process has gone. `--help` prints `doc` and the flags of the command.
    """
    for stream in (sys.stdout, sys.stderr):  # in ASCII, say, a question may not be printable: \xfc for ü then
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    define()
    return distributed.leave(_run(main, doc, takes, several))


def leave(code: int) -> NoReturn:
    """End the program. At once after an error that is a sentence, which would be buried by what a full disk means to
    the threads and the exit handlers of libraries; after a signal, when all is saved and Python would take seconds to
    put its memory in order; and where a compile has been left behind."""
    if code == USAGE_ERROR or code >= 128 or left_behind():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run(main: Callable[..., int], doc: str, takes: str | None, several: bool) -> int:
    try:
        ctrl_c.raises()
        if {"--help", "-h"} & set(sys.argv):
            print(f"{doc.strip()}\n\n{_flag_help()}")
            return 0
        return main(*_parse(sys.argv, takes, several))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Interrupted as signalled:
        return 128 + signalled.args[0]
    except OSError as error:
        advice = _ADVICE.get(error.errno)
        if advice is None:
            return _failed(error)
        print(f"error: {advice[0]} ({error}); {advice[1]}", file=sys.stderr)
        return USAGE_ERROR
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    """What no user made is raised again; in one of several processes it is printed, as the others wait for this one."""
    if not distributed.several():
        raise error
    traceback.print_exception(error)
    distributed.await_verdict()
    return 1


def config() -> FrozenConfigDict:
    """The config that the flags ask for, with exactly the keys of configs/default.py. Raises InputError.

    Keys that are left to the model are None (ttrl_jax/resolve.py).
    """
    if flags.FLAGS.config is None:
        raise InputError("no config given; add --config configs/quickstart.py, or another file of configs/")
    given = flags.FLAGS.config
    default = importlib.import_module("configs.default").get_config()
    if not isinstance(given, ConfigDict):
        raise InputError(
            f"the config file's get_config() must return a ConfigDict, it returned a {type(given).__name__}"
        )
    _require_keys(given, default, "")
    return FrozenConfigDict(given)


def given() -> tuple[str, ...]:
    """The keys of the config that the command line sets, such as "rollout.votes"."""
    parsed = flags.FLAGS
    return tuple(n.removeprefix("config.") for n in parsed if n.startswith("config.") and parsed[n].present)


def defaults() -> dict[str, Any]:
    """Every key of configs/default.py with its value, None where the model decides."""
    return importlib.import_module("configs.default").get_config().to_dict()


def config_name() -> str:
    """The config file's name without its ending: the default name of a run."""
    return Path(config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]).stem


def _parse(argv: list[str], takes: str | None, several: bool) -> list[str]:
    """Parse the flags; what is no flag comes back: nothing, or what `takes` names, once or `several` times."""
    if str(_CHECKOUT) not in sys.path:
        sys.path.append(str(_CHECKOUT))
    argv = _with_home(argv)
    named = _config_argument(argv)
    # Looked for first, as the config's flags are unknown without it and the error would be about them.
    if named is not None and not Path(named.split(":")[0]).is_file():
        raise InputError(f"there is no config file {named.split(':')[0]}; see configs/ for those that exist")
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        message = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
        raise InputError(
            f"{str(error).splitlines()[0].rstrip(':')}: {message.strip()}" if "\n" in str(error) else str(error)
        ) from error
    except SyntaxError as error:
        raise InputError(
            f"the config file {error.filename} is not valid Python: {error.msg}, line {error.lineno}"
        ) from error
    except ImportError as error:
        raise InputError(f"the config file could not be imported: {error}") from error
    except (AttributeError, KeyError) as error:
        raise InputError(_unknown_key(str(error))) from error
    except TypeError as error:
        raise InputError(f"the config cannot be made: {error}") from error
    expected = 1 if takes is None else 2
    if len(rest) > expected and not several:
        raise InputError(f"unexpected argument {rest[expected]!r}; options begin with --, such as --config FILE.py")
    if len(rest) < expected:
        raise InputError(f"{takes} is missing; give it after the command")
    return rest[1:]


def _config_argument(argv: list[str]) -> str | None:
    """The value of --config, if it is given."""
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            return value if equals else "".join(argv[i + 1 : i + 2])
    return None


def _with_home(argv: list[str]) -> list[str]:
    """The arguments with the home folder for ~ in --config=~/FILE.py, where a shell leaves it."""
    named = _config_argument(argv)
    return [f"--config={Path(named).expanduser()}" if each == f"--config={named}" else each for each in argv]


def _unknown_key(text: str) -> str:
    return f"unknown config key or incomplete config file: {text.strip(chr(34))}; configs/default.py lists every key"


def _require_keys(given: ConfigDict, default: ConfigDict, prefix: str) -> None:
    for name in given:
        if name not in default:
            close = get_close_matches(name, list(default), n=1)
            hint = f"; did you mean {prefix}{close[0]}?" if close else "; configs/default.py lists every key"
            raise InputError(f"unknown config key {prefix}{name}{hint}")
    for name in default:
        if name not in given:
            raise InputError(
                f"the config lacks the key {prefix}{name}; begin it with configs/default.py's get_config()"
            )
        expected, got = default.get_type(name), given[name]
        if expected is ConfigDict and isinstance(got, ConfigDict):
            _require_keys(got, default[name], f"{prefix}{name}.")
            continue
        unset = got is None and default[name] is None  # left to the model
        whole = expected is float and type(got) is int  # 1 for 1.0, as on the command line
        if not (unset or whole or type(got) is expected):
            what = expected.__name__ + (" or unset" if default[name] is None else "")
            raise InputError(f"config key {prefix}{name} must be {what}, got {got!r} ({type(got).__name__})")


def _flag_help() -> str:
    return "\n".join(
        f"  --{flag.name}: {flag.help}"
        for name in (*OWN_FLAGS, *PROCESS_FLAGS)
        if name in flags.FLAGS
        for flag in [flags.FLAGS[name]]
    )

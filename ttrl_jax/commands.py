"""The commands and their flags; the config that flags ask for. Imports nothing that takes time.

So a wrong flag is answered, and help is given, before JAX and the libraries of models and data are imported, which
takes seconds: `begin` stands before those imports in each command's file.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from ttrl_jax.errors import InputError

# Commands run from a source checkout, whose configs/ lies beside the package; this finds it from any folder.
_CHECKOUT = Path(__file__).resolve().parent.parent

USAGE_ERROR = 2
_DEFAULTS = "configs.default"  # the module

_WHERE = "Of several processes: HOST:PORT of process 0. Unneeded on TPU, GKE, SLURM."
_MODE = "vote: the model as it is answers | learn: it learns from each batch | adapt: to each question alone."
_FLAGS: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "workdir": (flags.DEFINE_string, "", "Run folder; default: runs/<config name>."),
    "checkpoint": (flags.DEFINE_string, "", "Run folder, RUN/checkpoints/STEP, or model folder; default: model.path."),
    "out": (flags.DEFINE_string, "", "Folder to write; of a report, the file."),
    "images": (flags.DEFINE_string, "", "Folder in which each chart is written as an SVG file."),
    "step": (flags.DEFINE_string, None, "Steps of the checkpoint, last, or chosen; default: what the run returns."),
    "dtype": (flags.DEFINE_string, "float32", "float32, bit by bit what was trained, or bfloat16, half the size."),
    "adapter": (flags.DEFINE_bool, False, "Write the adapters of a run with LoRA, as PEFT stores them."),
    "topology": (flags.DEFINE_string, "", "TPU slice or GPUs: v5e:4x4, h100:8; default: this machine's devices."),
    "questions": (flags.DEFINE_list, [], "Numbers of questions, of the data and of each set in eval.tasks."),
    "follow": (flags.DEFINE_bool, False, "Show the run again whenever it has gone on, until it is finished."),
    "mode": (flags.DEFINE_string, "vote", _MODE),
    "json": (flags.DEFINE_bool, False, "Print the plan as JSON."),
    "model": (flags.DEFINE_string, "", "Folder or .gguf file that the run began with, if it has been moved."),
    "coordinator": (flags.DEFINE_string, "", _WHERE),
    "num_processes": (flags.DEFINE_integer, None, "How many processes there are, likewise."),
    "process_id": (flags.DEFINE_integer, None, "Which of them this is, from 0, likewise."),
}  # fmt: skip
PROCESSES = ("coordinator", "num_processes", "process_id")


@dataclass(frozen=True)
class Command:
    """A command: `python -m ttrl_jax.NAME`, or `ttrl NAME`."""

    name: str = ""
    what: str = ""  # in a few words
    flags: tuple[str, ...] = ()  # "config", and names of _FLAGS
    takes: str | None = None  # what the argument is called that is no flag
    several: bool = False  # there may be none or more than one of it
    default: str = ""  # the file of configs/ that is taken without --config; empty: --config must be given
    own: Mapping[str, str] = field(default_factory=dict)  # what a flag of _FLAGS means where it is another than there

    def define(self) -> None:
        """Define its flags, those that no other command has in the same process."""
        if "config" in self.flags and "config" not in flags.FLAGS:
            what = "Config file, with an argument after a colon where it takes one; --config.a.b=value overrides a key."
            config_flags.DEFINE_config_file("config", None, what)
        for name in self.flags:
            if name not in flags.FLAGS:
                kind, default, what = _FLAGS[name]
                kind(name, default, what)

    def help(self, doc: str) -> str:
        """What --help prints."""
        keys = "\n  --helpfull lists every key of the config" if "config" in self.flags else ""
        return (
            f"{doc.strip()}\n\n"
            + "\n".join(f"  --{x}: {self.own.get(x, flags.FLAGS[x].help)}" for x in self.flags)
            + keys
        )


TRAIN = Command("train", "a model improves itself on unlabelled questions", ("config", "workdir", *PROCESSES))
EVALUATE_FLAGS = ("config", "checkpoint", "step", "out", "model", *PROCESSES)
EVALUATE = Command("evaluate", "measure a model or a run", EVALUATE_FLAGS)
PLAN = Command("plan", "will a run fit, and how long does it take", ("config", "topology", "questions", "json"))
LOOK = Command("look", "a run in the terminal, while it trains or afterwards", ("follow",), takes="RUN")
REPORT = Command("report", "one page on a run or several", ("out", "images"), takes="RUN", several=True)
EXPORT_FLAGS = ("out", "step", "dtype", "model", "adapter")
EXPORT = Command("export", "a trained model as a Hugging Face folder", EXPORT_FLAGS, takes="RUN")
MERGE = Command("merge", "one model out of two", ("out",), takes="RECIPE.yml")
SOLVE = Command(
    "solve",
    "answers to a stream of questions, by vote, while the model may learn or adapt",
    ("model", "config", "mode", "out", "follow", "checkpoint", "step", "workdir"),
    takes="QUESTIONS",
    default="solve",
    own={
        "model": "Hub name, folder or .gguf file; default: the config's model.path. With --checkpoint as in evaluate.",
        "out": "File of the answers, to which the same command adds; default: stdout.",
        "follow": "Wait for more questions in a folder, or in a file that grows.",
        "checkpoint": "Run folder or RUN/checkpoints/STEP, whose model answers; only with --mode=vote.",
        "workdir": "With --mode=learn, the folder of what is learned; default: runs/solve.",
    },
)
NO_FLAGS = Command()
COMMANDS = {each.name: each for each in (TRAIN, SOLVE, LOOK, REPORT, EVALUATE, EXPORT, PLAN, MERGE)}


def begin(command: Command, *, doc: str) -> list[str]:
    """Parse the flags of sys.argv and return what is no flag. Prints help and ends the process where that is asked for;
    ends it with one line on stderr and exit code 2 where the flags or the config are wrong."""
    try:
        return parse(command, doc=doc)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def parse(command: Command, *, doc: str) -> list[str]:
    """As `begin`. Raises InputError where the flags or the config are wrong, SystemExit after help."""
    command.define()
    # Else its first line here would be that there is no PyTorch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if str(_CHECKOUT) not in sys.path:
        sys.path.append(str(_CHECKOUT))
    asked = set(sys.argv[1:]) & {"--help", "-h", "--helpfull"}
    if asked:
        print(command.help(doc))
        if "--helpfull" in asked and "config" in command.flags:
            print("\nKeys of the config, with their defaults:\n\n" + "\n".join(keys_help()))
        sys.exit(0)
    arguments = _parse(sys.argv, command)
    if "config" in command.flags:
        config()
    return arguments


def config() -> FrozenConfigDict:
    """The config that the flags ask for, with exactly the keys of configs/default.py. Raises InputError.

    Keys that are left to the model are None (ttrl_jax/resolve.py).
    """
    if flags.FLAGS.config is None:
        raise InputError("no config given; add --config configs/quickstart.py, or another file of configs/")
    given = flags.FLAGS.config
    default = importlib.import_module(_DEFAULTS).get_config()
    if not isinstance(given, ConfigDict):
        raise InputError(
            f"the config file's get_config() must return a ConfigDict, it returned a {type(given).__name__}"
        )
    _require_keys(given, default, "")
    return FrozenConfigDict(given)


def given() -> tuple[str, ...]:
    """The keys of the config that the command line sets, such as "rollout.votes"."""
    # Out of the arguments themselves: absl takes a flag for a tuple for absent where it is set to ().
    named = (re.match(r"--?(?:no)?config\.([\w.]+)", argument) for argument in sys.argv[1:])
    return tuple(dict.fromkeys(found[1] for found in named if found))


def defaults() -> dict[str, Any]:
    """Every key of configs/default.py with its value, None where the model decides."""
    return importlib.import_module(_DEFAULTS).get_config().to_dict()


def overrides() -> list[str]:
    """The keys that the command line sets, as flags with their values."""
    values = {key: flags.FLAGS[f"config.{key}"].value for key in given()}
    return [f"--config.{key}={tuple(x) if isinstance(x, list) else x}" for key, x in values.items()]


def config_flag() -> str:
    """The value of --config: the file, with its argument if it has one."""
    return config_flags.get_config_filename(flags.FLAGS["config"])


def config_name() -> str:
    """The config file's name without its ending: the default name of a run."""
    return Path(config_flag().split(":")[0]).stem


def _parse(argv: list[str], command: Command) -> list[str]:
    """Parse the flags; what is no flag comes back: nothing, or what the command takes, once or several times."""
    argv = _with_home(argv)
    if command.default and _config_argument(argv) is None:
        argv = [argv[0], f"--config={_CHECKOUT / 'configs' / command.default}.py", *argv[1:]]
    named = _config_argument(argv)
    # Looked for first, as the config's flags are unknown without it and the error would be about them.
    if named is not None and not Path(named.split(":")[0]).is_file():
        raise InputError(f"there is no config file {named.split(':')[0]}; see configs/ for those that exist")
    if "config" in command.flags:
        _require_known(argv, command)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        if found := re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL):
            raise InputError(_wrong_value(*found.groups())) from error
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
    expected = 1 if command.takes is None else 2
    if len(rest) > expected and not command.several:
        raise InputError(f"unexpected argument {rest[expected]!r}; options begin with --, such as --config FILE.py")
    if len(rest) < expected:
        raise InputError(f"{command.takes} is missing; give it after the command")
    return rest[1:]


def _require_known(argv: list[str], command: Command) -> None:
    """Raises InputError for a flag that is none, or a key that is none, with the one that may be meant."""
    keys = list(flat(defaults()))
    for argument in argv[1:]:
        if not argument.startswith("--") or argument == "--":
            continue
        name = argument[2:].partition("=")[0]
        key = name.removeprefix("no" if name.startswith("noconfig.") else "").removeprefix("config.")
        if key != name and key not in keys and not any(each.startswith(f"{key}.") for each in keys):
            raise InputError(f"unknown config key {key}{_meant(key, keys)}")
        if key == name and name not in flags.FLAGS and name.removeprefix("no") not in flags.FLAGS:
            close = get_close_matches(name, command.flags, n=1)
            if close and not _candidates(name, keys, exact=True):
                raise InputError(f"unknown option --{name}; did you mean --{close[0]}?")
            raise InputError(f"unknown option --{name}{_meant(name, keys, prefix='--config.')}")


def _meant(name: str, keys: list[str], prefix: str = "") -> str:
    close = _candidates(name, keys)
    if not close:
        return "; --helpfull lists every key of the config"
    return f"; did you mean {' or '.join(prefix + key for key in close)}?"


def _candidates(name: str, keys: list[str], *, exact: bool = False) -> list[str]:
    """The keys that `name` may stand for: a last part such as votes, its initials such as lr, or a misspelling."""
    last = name.rpartition(".")[2]
    found = [key for key in keys if key == name or key.rpartition(".")[2] == last]
    if found or exact:
        return found[:3]
    words = {key: key.rpartition(".")[2] for key in keys}
    found = [key for key, word in words.items() if "".join(part[0] for part in word.split("_")) == last]
    same_section = [key for key in found if key.rpartition(".")[0] == name.rpartition(".")[0]]
    if found:
        return (same_section or found)[:3]
    return (
        get_close_matches(name, keys, n=1, cutoff=0.75)
        or [key for key in keys if words[key] in get_close_matches(last, words.values(), n=1, cutoff=0.75)][:3]
    )


def keys_help() -> Iterator[str]:
    """Every key of configs/default.py as a flag, with its default and what is written beside it there."""
    module = importlib.import_module(_DEFAULTS)
    above: list[str] = []
    for line in Path(module.__file__).read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("#"):
            above.append(text.lstrip("# "))
            continue
        if found := re.fullmatch(r"c\.([\w.]+) = (.*?)(?:  # (.*))?", text):
            key, value, beside = found.groups()
            if value == "ConfigDict()":
                yield f"\n{key}" + (f": {beside}" if beside else "")
            else:
                unset = re.fullmatch(r"placeholder\((\w+)\)", value)
                yield f"  --config.{key}=" + (f"<{unset[1]}, by the model>" if unset else value)
                yield from (f"      {each}" for each in (*above, beside) if each)
        above = []


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one, with names such as "model.path"."""
    found = {}
    for name, value in section.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


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


def _wrong_value(key: str, given: str) -> str:
    """What is wrong with the value that is given for a key of the config."""
    section, _, name = key.rpartition(".")
    default = importlib.import_module(_DEFAULTS).get_config()
    kind = (default[section] if section else default).get_type(name)
    if kind is ConfigDict:
        return (
            f"--config.{key}={given}: {key} is a section; set one of its keys, such as {key}.{next(iter(default[key]))}"
        )
    return f"--config.{key}={given}: {key} must be {kind.__name__}, got {given!r}"


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

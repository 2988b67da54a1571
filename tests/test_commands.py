"""Semantics: what is wrong with a command line is said at once, with the key that was meant; help lists all keys."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import default
from ttrl_jax import commands
from ttrl_jax.errors import InputError

ROOT = Path(__file__).parent.parent
QUICKSTART = f"--config={ROOT / 'configs' / 'quickstart_sums.py'}"

pytestmark = pytest.mark.usefixtures("fresh_flags")


@pytest.mark.parametrize("argument", ["--config.train.lr=1", "--episodes=1", "--config.seed=abc", "--help"])
def test_what_is_wrong_is_said_before_anything_big_is_imported(argument: str):
    code = f"""
import atexit, runpy, sys
big = {{"jax", "transformers", "datasets", "sympy", "orbax"}}
atexit.register(lambda: print("imported:", sorted(big & set(sys.modules))))
sys.argv = ["-m", {QUICKSTART!r}, {argument!r}]
runpy.run_module("ttrl_jax.train", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == (0 if argument == "--help" else 2), done.stderr
    assert done.stdout.endswith("imported: []\n")
    assert len(done.stderr.splitlines()) == (0 if argument == "--help" else 1)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--episodes=1", "unknown option --episodes; did you mean --config.episodes?"),
        ("--votes=8", "unknown option --votes; did you mean --config.rollout.votes?"),
        ("--rollout.votes=8", "unknown option --rollout.votes; did you mean --config.rollout.votes?"),
        ("--workdr=x", "unknown option --workdr; did you mean --workdir?"),
        ("--config.episods=1", "unknown config key episods; did you mean episodes?"),
        ("--config.train.lr=1", "unknown config key train.lr; did you mean train.learning_rate?"),
        ("--config.votes=8", "unknown config key votes; did you mean rollout.votes?"),
        (
            "--config.samples=8",
            "unknown config key samples; did you mean canary.samples or eval.samples or train.samples?",
        ),
        ("--config.xyzzy=1", "unknown config key xyzzy; --helpfull lists every key of the config"),
        ("--config.episodes=abc", "--config.episodes=abc: episodes must be int, got 'abc'"),
        ("--config.mesh.offload=maybe", "--config.mesh.offload=maybe: mesh.offload must be bool, got 'maybe'"),
        ("--config.eval=3", "--config.eval=3: eval is a section; set one of its keys, such as eval.every"),
    ],
)
def test_the_key_that_was_meant_is_named(argument: str, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["train", QUICKSTART, argument])
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        commands.parse(commands.TRAIN, doc="")


def test_flags_that_are_right_pass(fresh_flags, monkeypatch: pytest.MonkeyPatch):
    """Booleans without a value, negated ones, and values after a space too."""
    right = ["--config.mesh.offload", "--noconfig.log.tensorboard", "--workdir", "runs/x", "--config.seed", "3"]
    right += ["--config.eval.tasks=()", "--config.eval.k=(4,)"]
    monkeypatch.setattr(sys, "argv", ["train", QUICKSTART, *right])
    assert commands.parse(commands.TRAIN, doc="") == []
    config = commands.config()
    assert (config.mesh.offload, config.log.tensorboard, config.seed) == (True, False, 3)
    want = {"--config.mesh.offload=True", "--config.log.tensorboard=False", "--config.seed=3"}
    assert set(commands.overrides()) == want | {"--config.eval.tasks=()", "--config.eval.k=(4,)"}
    monkeypatch.setattr(sys, "argv", ["train", QUICKSTART, *commands.overrides()])
    again = commands.overrides()
    fresh_flags()
    commands.parse(commands.TRAIN, doc="")
    assert commands.overrides() == again and commands.config() == config


def test_helpfull_lists_every_key_with_its_comment(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--helpfull"])
    with pytest.raises(SystemExit, match="0"):
        commands.parse(commands.TRAIN, doc="What it does.")
    out = capsys.readouterr().out
    shown = re.findall(r"^  --config\.([\w.]+)=", out, re.MULTILINE)
    assert sorted(shown) == sorted(commands.flat(default.get_config().to_dict()))
    assert "  --config.rollout.votes=64\n      responses to each question; all of them vote\n" in out
    assert "  --config.rollout.max_tokens=<int, by the model>\n" in out and out.startswith("What it does.")


def ttrl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ttrl_jax", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_ttrl_lists_the_commands():
    for arguments in ((), ("--help",)):
        listed = ttrl(*arguments)
        assert listed.returncode == 0
        assert re.findall(r"^  (\w+)  +\S", listed.stdout, re.MULTILINE) == list(commands.COMMANDS)


def test_ttrl_runs_a_command_and_names_a_misspelt_one():
    assert ttrl("export", "--help").stdout.startswith("Write what a run has trained")
    wrong = ttrl("trian")
    assert (wrong.returncode, wrong.stderr) == (2, "error: there is no command 'trian'; did you mean train?\n")


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_each_command_has_its_module(name: str):
    module = importlib.import_module(f"ttrl_jax.{name}")
    module = importlib.import_module(f"ttrl_jax.{name}.__main__") if hasattr(module, "__path__") else module
    assert f"python -m ttrl_jax.{name}" in module.__doc__ and callable(module.main)

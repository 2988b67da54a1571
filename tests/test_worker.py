"""Semantics: a worker does nothing but compare, even if an answer could make Python run something in it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

WORKER = """
import sys
from ttrl_jax.reward import _worker
sys.argv = ["_worker", "512", "30", "600"]
_worker.compare = lambda first, second: ({attack}) if first == "attack" else None
_worker.main()
"""


def attacked(attack: str, folder: Path) -> subprocess.CompletedProcess:
    """What becomes of a worker in which an answer could make Python evaluate `attack`."""
    return subprocess.run(
        [sys.executable, "-c", WORKER.format(attack=attack)],
        env={"PYTHONPATH": str(ROOT), "CANARY": str(folder / "canary")},
        input=json.dumps(["attack", "1"]).encode() + b"\n",
        capture_output=True,
        timeout=120,
    )


def reply(done: subprocess.CompletedProcess) -> bytes:
    """What it found of its only pair; with it comes the processor time."""
    ready, line = done.stdout.splitlines()
    found, seconds = line.split()
    assert ready == b"ready" and 0 <= float(seconds) < 30
    return found


CANARY = "__import__('os').environ['CANARY']"
ATTACKS = {
    "nothing, to see that the frame of these tests works": "sys.modules['math'].pi > 3",
    "write a file": f"open({CANARY}, 'w')",
    "append to a file": f"open({CANARY}, 'a')",
    "make a file without open()": f"sys.modules['os'].open({CANARY}, 65)",
    "read a file": "open('/etc/passwd').read()",
    "make a folder": f"sys.modules['os'].mkdir({CANARY})",
    "run a shell": f"sys.modules['os'].system('touch ' + {CANARY})",
    "fork": "sys.modules['os'].fork()",
    "become another program": "sys.modules['os'].execv('/bin/true', ['true'])",
    "start a process": "__import__('subprocess')",
    "open a socket": "__import__('socket')",
    "load a library": "__import__('ctypes')",
    "evaluate": "eval('1')",
    "execute": "exec('pass')",
    "compile": "compile('1', 'sympy', 'eval')",
    "make code": "(lambda: 0).__code__.replace(co_name='x')",
    "unlink": f"sys.modules['os'].unlink({CANARY})",
    "hook": "sys.addaudithook(print)",
    "signal a process": "sys.modules['os'].kill(1, 0)",
    "parse an expression as Python": "sys.modules['sympy'].sympify('x + 1')",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_the_audit_hook_ends_a_worker_that_does_anything_but_compare(attack: str, tmp_path: Path):
    done = attacked(attack, tmp_path)
    if attack == next(iter(ATTACKS.values())):
        assert (done.returncode, reply(done)) == (0, b"true")
    else:
        assert (done.returncode, done.stdout, done.stderr) == (70, b"ready\n", b"")
    assert list(tmp_path.iterdir()) == []


def test_a_worker_never_has_jax(tmp_path: Path):
    done = attacked("'sympy' in sys.modules and not {'jax', 'jaxlib', 'flax', 'numpy'} & set(sys.modules)", tmp_path)
    assert (done.returncode, reply(done)) == (0, b"true")

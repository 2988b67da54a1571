"""Semantics: what a signal does, and when."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from ttrl_jax.run.interrupt import Interrupt, Interrupted, in_background


def start(program: str, *arguments: str) -> subprocess.Popen:
    environment, pipe = os.environ | {"JAX_PLATFORMS": "cpu"}, subprocess.PIPE
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


WAITS_FOR_A_SIGNAL = """
import signal, sys, time
from ttrl_jax.run.interrupt import Interrupt
former = signal.getsignal(signal.SIGTERM)
with Interrupt() as interrupt:
    print("ready", interrupt.signum, flush=True)
    while interrupt.signum is None:
        time.sleep(0.01)
    print("noted", interrupt.signum, flush=True)
    time.sleep(float(sys.argv[1]))
assert signal.getsignal(signal.SIGTERM) is former
print("left in order")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("twice", [False, True])
def test_the_first_signal_is_noted_and_the_second_ends_the_process(number, twice):
    child = start(WAITS_FOR_A_SIGNAL, "60" if twice else "0")
    try:
        assert child.stdout.readline() == "ready None\n"
        child.send_signal(number)
        assert child.stdout.readline() == f"noted {int(number)}\n"
        if twice:
            child.send_signal(number)
        # Not communicate(), which would miss what readline() has read ahead.
        rest, notice = child.stdout.read(), child.stderr.read()
        child.wait(timeout=30)
    finally:
        child.kill()
    assert f"{number.name}: will save and leave" in notice
    assert (rest, child.returncode) == (("", -number) if twice else ("left in order\n", 0))


def test_interrupt_puts_the_former_handlers_back():
    former = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        assert signal.getsignal(signal.SIGINT) is not former
    assert signal.getsignal(signal.SIGINT) is former and interrupt.signum is None


def test_a_signal_is_raised_at_once_where_it_may_be():
    state = {"w": jnp.ones(3)}
    with Interrupt() as interrupt, pytest.raises(Interrupted) as raised, interrupt.at_once(state):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert raised.value.args == (signal.SIGTERM,)


def test_a_signal_from_before_is_raised_on_entering():
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.signum == signal.SIGINT
        with pytest.raises(Interrupted), interrupt.at_once():
            pytest.fail("the block began")


def test_an_update_that_has_taken_the_state_is_finished_first():
    state, step = {"w": jnp.ones(3)}, jax.jit(lambda state: {"w": state["w"] + 1}, donate_argnums=0)
    with Interrupt() as interrupt, interrupt.at_once(state):
        updated = step(state)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.signum == signal.SIGTERM and float(updated["w"][0]) == 2


LEAVES_A_LONG_COMPILE = """
import sys, time
from ttrl_jax import cli
from ttrl_jax.run.interrupt import Interrupt, in_background

def main():
    with Interrupt() as interrupt, interrupt.at_once():
        print("compiling", flush=True)
        in_background(lambda: time.sleep(60))

cli.leave(cli.run(main, doc=""))
"""


def test_a_long_compile_keeps_nobody():
    """What runs in the background is left behind, and the process ends with the code of its signal."""
    child = start(LEAVES_A_LONG_COMPILE)
    try:
        assert child.stdout.readline() == "compiling\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=20) == 128 + signal.SIGTERM
    finally:
        child.kill()


LEAVES_BY_A_SIGNAL = """
import atexit, signal, time
from ttrl_jax import cli
from ttrl_jax.run.interrupt import Interrupted
atexit.register(time.sleep, 60)

def main():
    raise Interrupted(signal.SIGTERM)

cli.leave(cli.run(main, doc=""))
"""


def test_after_a_signal_nothing_is_put_in_order():
    """What must be saved is saved by then; a large process takes seconds to end otherwise."""
    child = start(LEAVES_BY_A_SIGNAL)
    try:
        assert child.wait(timeout=30) == 128 + signal.SIGTERM
    finally:
        child.kill()


def test_what_is_done_in_the_background_comes_back():
    assert in_background(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 / 0)

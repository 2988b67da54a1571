"""Several processes, one on each host, as one program: JAX's own multi-controller runtime.

All processes run the same lines with the same values. They wait for each other in programs over arrays of the whole
mesh, and in the functions below, which every process must call in the same order. Process 0 writes files and prints.
With a single process, these functions do nothing, or just call what they are given.
"""

import ctypes
import hashlib
import json
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed as runtime
from jax.experimental import multihost_utils

from ttrl_jax.errors import InputError

T = TypeVar("T")

RESTART = 75  # exit code (EX_TEMPFAIL): another process has gone, and the same command goes on from what was saved
JOIN = 300  # seconds that a process waits for the others to come
HEARTBEAT = 20  # seconds without a sign of life after which a process has gone
_TOGETHER = 10  # seconds that a process which leaves with an error waits for the others to leave as well
_SIGNAL = "ttrl_jax/signal"  # where a process that has got a signal says so
_SMALLEST, _PIECE = 1 << 10, 1 << 22  # bytes gathered at once: powers of 4 between these, for few programs

# The runtime ends a process whose peers have gone by abort(). This makes an exit code and a sentence of it; Python's
# own handlers would wait for the main thread, which hangs in a collective. Kept here, as C holds no reference to it.
_on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: _abandoned())
_GONE = (
    "JAX's runtime has ended this process, as a rule because another one has gone, whose last lines say why; start all "
    "of them again with the same command, which goes on from the last checkpoint"
)
_last_words = _GONE
_noted: Exception | None = None  # what `alone` has failed with, until all have met


def start(*, coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Join the other processes of this job, if there are any; before the first use of a device.

    coordinator: HOST:PORT of process 0, or "". If none of the three arguments is given, a launcher of several processes
    is recognised by its environment variables or, on a Cloud TPU VM, by its metadata: Cloud TPU, GKE, SLURM (srun) and
    Open MPI, as `jax.distributed.initialize` knows them. Without arguments and without a launcher there is one process,
    and the network is not used. All processes but process 0 close their stdout after one line. Raises InputError if the
    three arguments do not fit together. Ends the process with RESTART if the others have not come after JOIN seconds.
    """
    global _last_words
    given = {"--coordinator": coordinator or None, "--num_processes": num_processes, "--process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    explicit = not missing
    if missing and len(missing) < len(given):
        raise InputError(f"{', '.join(given)} go together, and {' and '.join(missing)} is missing; give all or none")
    if explicit:
        _check(coordinator, num_processes, process_id)
    if jax.distributed.is_initialized() or (num_processes == 1 if explicit else not _launched()):
        return
    where = f"{coordinator}" if explicit else "the address that their launcher set"
    print(f"waiting for the other processes, at {where} ...", file=sys.stderr, flush=True)
    advice = f"start all of them within {JOIN} seconds, with the address of process 0 and a free port there"
    _last_words = f"the other processes did not come to {where}; {advice}"
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from checkpoint.Interrupt
    try:
        jax.distributed.initialize(
            coordinator or None,
            num_processes,
            process_id,
            cluster_detection_method="deactivate" if explicit else None,
            initialization_timeout=JOIN,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=3 * HEARTBEAT,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"the processes could not be joined at {where} ({str(error).splitlines()[0]}); {advice}"
        ) from error
    _last_words = _GONE
    count, index = jax.process_count(), jax.process_index()
    print(f"process {index} of {count}" + ("" if index == 0 else ": process 0 speaks for all"), flush=True)
    if index != 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--coordinator must be HOST:PORT of process 0, got {coordinator!r}")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id must be in 0 .. --num_processes - 1, got {process_id} of {num_processes} processes"
        )


def _launched() -> bool:
    """Whether something has started this process as one of several that JAX can find."""
    environment = os.environ
    # What JAX itself looks for; and of this step more than one task, which an interactive shell has not.
    if "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return True
    if "OMPI_MCA_orte_hnp_uri" in environment and int(environment["OMPI_COMM_WORLD_SIZE"]) > 1:
        return True
    # On a Cloud TPU VM, JAX sets this when it is imported.
    if "tpu" not in (jax.config.jax_platforms or "").split(",") or "TPU_SKIP_MDS_QUERY" in environment:
        return False
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    return hosts is None or "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1


def require_alone(command: str) -> None:
    """Raise InputError where something has started this process as one of several, with which the command would answer
    everything as often."""
    if several() or _launched():
        raise InputError(f"{command} works in one process, and this is one of several; start it once, on one host")


def devices() -> list[jax.Device]:
    """All devices. Raises InputError if there are none of the kind that JAX_PLATFORMS asks for."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax gives no sentence for CUDA
        reason = (str(error) or "it has no such backend").splitlines()[0]
        raise InputError(
            f"JAX finds no device by JAX_PLATFORMS={jax.config.jax_platforms!r}: {reason}; install JAX for such a "
            "device (README, Install), or unset JAX_PLATFORMS"
        ) from error


def several() -> bool:
    """Whether this process is one of several. Asks no device."""
    return jax.distributed.is_initialized()


def leader() -> bool:
    """Whether this process is the one that writes and speaks."""
    return not several() or jax.process_index() == 0


def gather(make: Callable[[], T]) -> list[T]:
    """Give all processes what make() returns in each of them, in their order.

    If make() raises in a process, all raise the same (if it raises in several, what the first of them raised), so that
    no process waits for one that has left. The results are sent as pickles.
    """
    if not several():
        return [make()]
    result, own = None, None
    try:
        if _noted is not None:
            raise _noted
        result = make()
    except Exception as error:  # whatever it is, the others must not wait for it
        own = error
    parts = [pickle.loads(part) for part in _all_bytes(pickle.dumps((result, own)))]
    for process, (_, error) in enumerate(parts):
        if error is not None:
            if process == jax.process_index():
                raise own
            error.add_note(f"(raised in process {process})")
            raise error
    return [part for part, _ in parts]


def together(make: Callable[[], T]) -> T:
    """Return what make() returns in this process, after it has returned in all. If it raises in one, all raise."""
    kept = []
    gather(lambda: kept.append(make()))
    return kept[0]


def first(value: T) -> T:
    """The value that process 0 has, for all."""
    return gather(lambda: value if leader() else None)[0]


def alone(work: Callable[[], None]) -> None:
    """Run what process 0 alone does, such as writing a file. If it raises, all processes raise at their next exchange.

    So no process waits for one that has left, and no step needs one more exchange. After a failure nothing more is done
    here until then, because what comes later must not be written without what failed.
    """
    global _noted
    if not leader() or _noted is not None:
        return
    try:
        work()
    except Exception as error:  # whatever it is, the others must not wait for this process
        if not several():
            raise
        _noted = error


def share(count: int) -> slice:
    """Which of `count` items this process does. The shares of processes differ by one item at most."""
    if not several():
        return slice(0, count)
    processes, index = jax.process_count(), jax.process_index()
    return slice(count * index // processes, count * (index + 1) // processes)


def each(work: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """The results of work(item) for all items, in their order, in all processes. Each item is done by one process."""
    parts = gather(lambda: [work(item) for item in items[share(len(items))]])
    return [result for part in parts for result in part]


def require_same(facts: Mapping[str, Any]) -> None:
    """Raise InputError, in all processes, if one of these facts (JSON) differs between processes."""
    digests = gather(lambda: {name: _digest(value) for name, value in facts.items()})
    for process, digest in enumerate(digests):
        differing = sorted(name for name in facts.keys() | digest.keys() if digest.get(name) != digests[0].get(name))
        if differing:
            raise InputError(
                f"process {process} differs from process 0 in {', '.join(differing)}; start all processes with the "
                "same command, the same files and the same packages"
            )


def signalled(own: int | None) -> int | None:
    """The number of a signal that came to this process (`own`) or to another one; None if none came.

    Processes need not call this together: each may ask at any time, and they may learn of a signal at different times.
    So each host can stop its own work before all agree in a `gather`.
    """
    if not several():
        return own
    board = runtime.global_state.client  # what JAX's runtime keeps in process 0, for all; Orbax uses it too
    if own is not None:
        board.key_value_set(_SIGNAL, str(own), allow_overwrite=True)
        return own
    try:
        return int(board.key_value_try_get(_SIGNAL))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


def leave(code: int) -> int:
    """The exit code, once the processes have left the runtime together; ends this one if the others do not come."""
    if not several():
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(_TOGETHER if code else 3 * HEARTBEAT)
    if code or farewell.is_alive():
        os._exit(code)
    return code


def await_verdict() -> None:
    """After an error that may be another process's end: wait for as long as the runtime takes to see that, and to end
    this process with RESTART. Returns if all others live."""
    if several():
        time.sleep(HEARTBEAT + _TOGETHER / 2)


def _abandoned() -> None:
    os.write(2, f"error: {_last_words}\n".encode())
    os._exit(RESTART)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _all_bytes(sent: bytes) -> list[bytes]:
    """Send what each process has to all: through the devices, which have the fastest connection."""
    sizes = multihost_utils.process_allgather(np.int32(len(sent))).tolist()
    pieces = []
    while (at := sum(piece.shape[1] for piece in pieces)) < max(sizes):
        width = _SMALLEST
        while width < min(max(sizes) - at, _PIECE):
            width *= 4
        piece = np.zeros(width, np.uint8)
        mine = np.frombuffer(sent[at : at + width], np.uint8)
        piece[: len(mine)] = mine
        pieces.append(multihost_utils.process_allgather(piece))
    whole = np.concatenate(pieces, axis=1)
    return [row[:size].tobytes() for row, size in zip(whole, sizes, strict=True)]

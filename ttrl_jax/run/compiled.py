"""jax.jit with visible compiles: each is announced before, and with its seconds after; programs are kept on disk."""

import inspect
import os
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

import jax

from ttrl_jax.run.interrupt import in_background

PyTree = Any

_WORTH_A_LINE = 1.0  # seconds of a compile; what takes less is not said


class Announce(Protocol):
    """Told of each compile, before it (seconds None) and after it."""

    def __call__(self, program: str, details: str, seconds: float | None) -> None:
        """program: "decode, 8 x 64 rows, cache 512"; details: the shapes of all arguments."""


def lines(say: Callable[[str], None], *, details: bool = False) -> Announce:
    """Announcements as lines, one for each program that takes long; details: one for each program, with all shapes."""

    def announce(program: str, arguments: str, seconds: float | None) -> None:
        if seconds is not None and (details or seconds >= _WORTH_A_LINE):
            say(f"compiling {program}{f' ({arguments})' if details else ''} ... {seconds:.1f} s")

    return announce


def keep_programs(announce: Callable[[str], None]) -> None:
    """Let JAX keep on disk what takes it more than a second to compile, so that another run need not compile it again.

    The folder is ttrl_jax/programs in the user's cache folder (XDG_CACHE_HOME, else ~/.cache). JAX's own variables go
    first: another folder in JAX_COMPILATION_CACHE_DIR, or none with JAX_ENABLE_COMPILATION_CACHE=false.
    """
    if jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir is None:
        home = os.environ["XDG_CACHE_HOME"] if "XDG_CACHE_HOME" in os.environ else Path.home() / ".cache"
        folder = Path(home) / "ttrl_jax" / "programs"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        announce(f"programs  compiled ones are kept in {folder}")


def in_parallel(
    work: Sequence[tuple[jax.sharding.Mesh, Callable[[], object]]], *, announce: Callable[[str], None]
) -> None:
    """Do all of `work`, each task under its mesh, with as many threads as there are processors, and say how far it is.
    What one raises, this raises, once the others that have begun are done."""
    start = time.perf_counter()

    def one(mesh: jax.sharding.Mesh, task: Callable[[], object]) -> None:
        with jax.set_mesh(mesh):
            task()

    def all_of_them() -> None:
        with ThreadPoolExecutor(min(len(work), os.cpu_count() or 1)) as pool:
            futures = [pool.submit(one, *each) for each in work]
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                announce(f"compiled {done} of {len(work)} programs, {time.perf_counter() - start:.0f} s")

    announce(f"compiling {len(work)} programs, all that take long in the whole run ...")
    in_background(all_of_them)


class Compiled:
    """`jax.jit(fn)` that lowers and compiles explicitly, once per signature, and says so.

    A signature is what jit would compile anew for: the tree structure of the arguments, the shape, dtype, weak
    type and sharding of each leaf, the static arguments, and the mesh of `jax.set_mesh`. Looking one up costs
    about 30 microseconds for 50 leaves; the call itself is that of the compiled program. Not for use inside
    another jit.
    """

    def __init__(
        self,
        name: str,
        fn: Callable[..., PyTree],
        *,
        announce: Announce,
        words: Callable[..., str] = lambda *args, **kwargs: "",
        static_argnames: tuple[str, ...] = (),
        donate_argnames: tuple[str, ...] = (),
        out_shardings: PyTree = None,
        compiler_options: dict[str, Any] | None = None,
    ):
        """Wrap `fn`; nothing is traced yet.

        Args:
          name: what the announcements call it.
          announce: told of each compile.
          words: called as `fn` is; what tells this program from others of its name: "8 x 64 rows".
          static_argnames: keyword-only parameters of `fn` that are part of the program; hashable.
          donate_argnames: as in jax.jit.
          out_shardings: as in jax.jit; None leaves them to the compiler.
          compiler_options: as in jax.jit.
        """
        self.name = name
        self.compile_seconds = 0.0  # all traces and compiles so far
        self._announce, self._words = announce, words
        self._parameters = inspect.signature(fn)
        self._static = frozenset(static_argnames)
        for each in static_argnames:
            if self._parameters.parameters[each].kind is not inspect.Parameter.KEYWORD_ONLY:
                raise TypeError(f"static argument {each} of {name} must be keyword-only")
        self._jit = jax.jit(
            fn,
            static_argnames=static_argnames,
            donate_argnames=donate_argnames,
            out_shardings=out_shardings,
            compiler_options=compiler_options,
        )
        self._programs: dict[Hashable, jax.stages.Compiled] = {}

    def __call__(self, *args: PyTree, **kwargs: PyTree) -> PyTree:
        """Call `fn`, compiling first if this signature is new. Static arguments are passed by keyword."""
        dynamic = {key: value for key, value in kwargs.items() if key not in self._static}
        signature = self._signature(args, dynamic, kwargs)
        program = self._programs.get(signature)
        if program is None:
            program = self._programs[signature] = self._compile(args, kwargs)
        return program(*args, **dynamic)

    def _signature(self, args: tuple[PyTree, ...], dynamic: dict[str, PyTree], kwargs: dict[str, PyTree]) -> Hashable:
        leaves, structure = jax.tree.flatten((args, dynamic))
        static = tuple(sorted((key, kwargs[key]) for key in self._static & kwargs.keys()))
        mesh = jax.sharding.get_abstract_mesh()
        return structure, static, mesh, tuple([_leaf_key(leaf) for leaf in leaves])

    def prepare(self, *args: PyTree, **kwargs: PyTree) -> None:
        """Compile for the calls that have such arguments, for which jax.ShapeDtypeStructs with shardings may stand, and
        say nothing. By any thread, of the same mesh as the calls."""
        dynamic = {key: value for key, value in kwargs.items() if key not in self._static}
        signature = self._signature(args, dynamic, kwargs)
        if signature not in self._programs:
            self._programs[signature] = self.lower(*args, **kwargs).compile()

    def outputs(self, *args: PyTree, **kwargs: PyTree) -> PyTree:
        """What stands for the outputs of such a call, with their shardings. It compiles: for small programs."""
        lowered = self.lower(*args, **kwargs)
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            lowered.out_info,
            lowered.compile().output_shardings,
        )

    def lower(self, *args: PyTree, **kwargs: PyTree) -> jax.stages.Lowered:
        """What a call with these arguments would compile; jax.ShapeDtypeStructs may stand for arrays."""
        return self._jit.lower(*args, **kwargs)

    def _compile(self, args: tuple[PyTree, ...], kwargs: dict[str, PyTree]) -> jax.stages.Compiled:
        arguments = self._parameters.bind(*args, **kwargs).arguments
        shapes = ", ".join(
            f"{name}={value}" if name in self._static else f"{name} {_describe(value)}"
            for name, value in arguments.items()
        )
        words = self._words(*args, **kwargs)
        program = f"{self.name}, {words}" if words else self.name
        self._announce(program, shapes, None)
        start = time.perf_counter()
        compiled = in_background(self.lower(*args, **kwargs).compile)
        seconds = time.perf_counter() - start
        self.compile_seconds += seconds
        self._announce(program, shapes, seconds)
        return compiled


def _leaf_key(leaf: Any) -> Hashable:
    # A numpy array or a number has no layout yet. A number is a weakly typed scalar, whatever its value.
    return jax.typeof(leaf), leaf.sharding if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else None


def _describe(value: PyTree) -> str:
    """The words "int32[8, 64]" for an array, "52 arrays 2.6 MB" for a tree of them."""
    types = [jax.typeof(leaf) for leaf in jax.tree.leaves(value)]
    if jax.tree_util.all_leaves([value]):
        return f"{types[0].dtype.name}{list(types[0].shape)}"
    return f"{len(types)} arrays {sum(each.size * each.dtype.itemsize for each in types) / 1e6:.1f} MB"

"""Test-time reinforcement learning: a language model improves itself on questions nobody has labelled.

    ttrl COMMAND ...        or: python -m ttrl_jax COMMAND ..., which is python -m ttrl_jax.COMMAND ...

COMMAND --help says what a command takes. Begin with: ttrl train --config configs/quickstart.py
"""

import runpy
import sys
from difflib import get_close_matches

from ttrl_jax import ctrl_c
from ttrl_jax.commands import COMMANDS, USAGE_ERROR


def main() -> None:
    """Run the command that sys.argv names."""
    ctrl_c.ends_at_once()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        width = max(map(len, COMMANDS))
        print(f"{__doc__.strip()}\n\n" + "\n".join(f"  {n:<{width}}  {each.what}" for n, each in COMMANDS.items()))
    elif name in COMMANDS:
        sys.argv = [f"ttrl {name}", *rest]
        runpy.run_module(f"ttrl_jax.{name}", run_name="__main__", alter_sys=False)
    else:
        close = get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        print(f"error: there is no command {name!r}; {meant}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


if __name__ == "__main__":
    main()

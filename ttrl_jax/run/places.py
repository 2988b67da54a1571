"""Where a command reads and writes: what a path of the command line or of a config means."""

import re
from pathlib import Path

from ttrl_jax.errors import InputError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def local(path: str, *, flag: str) -> Path:
    """The path on this machine, with the home folder for ~.

    flag: what an error calls it, such as "--out". Raises InputError for an address, such as gs://bucket/x, which as a
    path would be a folder named "gs:".
    """
    if (scheme := _SCHEME.match(path)) is None:
        return Path(path).expanduser()
    hub = ", or of the hub its name alone" if scheme[1] == "hf" else ""
    raise InputError(f"{flag}: {path} is an address, which cannot be used here; give a path on this machine{hub}")

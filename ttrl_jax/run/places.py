"""Where a command reads and writes: what a path means, and whether it can be used, before the work begins.

A run folder may be in a bucket of Google Cloud Storage, gs://BUCKET/FOLDER. Its paths are those of etils.epath, which
Orbax uses too, and have the methods of a pathlib.Path; but `Path(path)` of one is a local folder /gs, and `resolve`
knows no buckets. Objects are written whole, by one request: at any moment there is the old one or the new.
"""

import contextlib
import importlib.util
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
from etils import epath

from ttrl_jax.errors import InputError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = "gs://"
_PROBE = ".ttrl_jax.probe"


def local(path: str, *, flag: str) -> Path:
    """The path on this machine, with the home folder for ~.

    flag: what an error calls it, such as "--out". Raises InputError for an address, such as s3://bucket/x, which as a
    path would be a folder named "s3:".
    """
    if (scheme := _SCHEME.match(path)) is None:
        return Path(path).expanduser()
    hub = ", or of the hub its name alone" if scheme[1] == "hf" else ""
    raise InputError(f"{flag}: {path} is an address, which cannot be used here; give a path on this machine{hub}")


def run_folder(path: str, *, flag: str) -> Path:
    """A path as by `local`, or gs://BUCKET/FOLDER. Raises InputError for other addresses, and if the bucket cannot be
    read."""
    if not in_bucket(path):
        if _SCHEME.match(path):
            raise InputError(f"{flag}: {path} cannot be used; give a path on this machine, or gs://BUCKET/FOLDER")
        return local(path, flag=flag)
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f'{flag}: {path} needs the package gcsfs, which is not installed: pip install -e ".[gcs]"')
    # Other processes write there too, so that what a folder held a moment ago is not to be believed.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints tracebacks of what it raises
    found = epath.Path(path)
    with _refused(f"{flag}: {path} cannot be read"):
        found.exists()
    return found


def in_bucket(path: str | Path) -> bool:
    """Whether this is no path on a disk."""
    return str(path).startswith(_BUCKET)


def absolute(path: str | Path) -> Path:
    """The one spelling of a path that does not depend on the current folder."""
    return epath.Path(path) if in_bucket(path) else Path(path).resolve()


def require_writable(folder: Path, *, flag: str) -> None:
    """Raise InputError if no file can be written in `folder`, which need not exist; tried with one of a byte.

    What was made is taken away again.
    """
    with _refused(f"{flag}: {folder} cannot be written"):
        if in_bucket(folder):
            (folder / _PROBE).write_bytes(b"x")
            (folder / _PROBE).unlink()
            return
        absent = [each for each in (folder, *folder.parents) if not each.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"x")
        finally:
            for each in absent:
                with contextlib.suppress(OSError):  # never made, or another process has used it since
                    each.rmdir()


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Make one sentence of what a disk or a bucket refuses."""
    try:
        yield
    except _errors() as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
        raise InputError(f"{what} ({reason}); choose another place, or see to its permissions") from error


def _errors() -> tuple[type[Exception], ...]:
    if importlib.util.find_spec("gcsfs") is None:
        return (OSError,)
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError

    return OSError, HttpError, GoogleAuthError

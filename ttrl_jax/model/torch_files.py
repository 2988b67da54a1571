"""Weights in PyTorch's own files (pytorch_model.bin), without PyTorch and without running what is in them.

Since release 1.6 such a file is a zip, uncompressed, with a pickle that names the tensors and a member for each
storage. The pickle is read by an unpickler that knows the few names a state dict needs, and nothing else; the numbers
are mapped from the disk, so that the host holds what is asked for.
"""

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ttrl_jax.errors import InputError

_STORAGES = {
    "FloatStorage": ("F32", np.dtype("f4")),
    "HalfStorage": ("F16", np.dtype("f2")),
    "BFloat16Storage": ("BF16", np.dtype(ml_dtypes.bfloat16)),
    "DoubleStorage": ("F64", np.dtype("f8")),
    "LongStorage": ("I64", np.dtype("i8")),
    "IntStorage": ("I32", np.dtype("i4")),
    "BoolStorage": ("BOOL", np.dtype("?")),
    "ByteStorage": ("U8", np.dtype("u1")),
}
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's member: signature, and the lengths of what follows


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file. Like a slice of safetensors it is read only when it is indexed."""

    dtype: str
    array: np.ndarray  # mapped from the disk

    def get_shape(self) -> list[int]:
        return list(self.array.shape)

    def get_dtype(self) -> str:
        return self.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.array[index]


def tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of the file, by name. Raises InputError if it is no such file, or has more than tensors in it."""
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
            [listing] = [name for name in names if name.endswith("/data.pkl")]
            prefix = listing.removesuffix("data.pkl")
            members = {name.removeprefix(f"{prefix}data/"): file.getinfo(name) for name in names}
            found = _Unpickler(file.open(listing), path, members).load()
        if not isinstance(found, dict) or not all(isinstance(each, Tensor) for each in found.values()):
            raise pickle.UnpicklingError("it holds something else than tensors by name")
        return dict(found)
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path} is not a file of weights that can be read ({error}); download it again, or get the model as "
            "safetensors"
        ) from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path, members: dict[str, zipfile.ZipInfo]):
        super().__init__(file)
        self._path, self._members = path, members

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *rest: tensor
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no weights need")

    def persistent_load(self, pid: Any) -> tuple[str, np.ndarray]:
        kind, (dtype, item), key, _, count = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"it refers to a {kind!r}")
        member = self._members[key]
        if member.compress_type != zipfile.ZIP_STORED or member.file_size < count * item.itemsize:
            raise pickle.UnpicklingError(f"its storage {key} is compressed or cut off")
        with self._path.open("rb") as file:
            file.seek(member.header_offset)
            signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise pickle.UnpicklingError(f"its storage {key} is not where it should be")
        start = member.header_offset + _LOCAL_HEADER.size + name + extra
        if not count:
            return dtype, np.zeros(0, item)
        return dtype, np.memmap(self._path, item, mode="r", offset=start, shape=(count,))


def _tensor(
    storage: tuple[str, np.ndarray], offset: int, shape: Sequence[int], strides: Sequence[int], *rest: Any
) -> Tensor:
    dtype, numbers = storage
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min(offset, *strides, *shape, 0) < 0 or (0 not in shape and last >= len(numbers)):
        raise pickle.UnpicklingError(f"a tensor {list(shape)} is larger than its storage")
    bytes_ = [stride * numbers.itemsize for stride in strides]
    return Tensor(dtype, np.lib.stride_tricks.as_strided(numbers[offset:], shape, bytes_, writeable=False))

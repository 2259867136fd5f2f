"""The file formats of CIFAR and MNIST, read without running anything that a file asks for."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import zlib
from typing import TYPE_CHECKING, Any

from trainrun.errors import UserError
from trainrun.parts.datasets.pictures import BadPicture, printable, read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

_IDX_UINT8 = 8
_DAMAGED = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError)


def damaged(path: str, reason: str) -> UserError:
    """What to say of a file that is not what its name promises."""
    return UserError(
        f"{printable(path)} is damaged or not the published file: {reason}; remove it and write data.download=true, or fetch it again"
    )


def read_bytes(path: str) -> bytes:
    """All bytes of a file, or a UserError that names it."""
    try:
        return read_file(path)
    except (OSError, BadPicture) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"cannot read {printable(path)}: {reason}") from None


def read_idx(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array of exactly this shape from an idx file, gzipped or not."""
    import numpy as np

    expected = 4 + 4 * len(shape) + int(np.prod(shape))
    data = read_bytes(path)
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(expected + 1)  # never more, whatever it unpacks to
        except _DAMAGED as error:
            raise damaged(path, str(error)) from None
    header = bytes([0, 0, _IDX_UINT8, len(shape)]) + b"".join(n.to_bytes(4) for n in shape)
    if data[: len(header)] != header:
        raise damaged(path, f"its header is not that of {' x '.join(map(str, shape))} bytes")
    if len(data) != expected:
        raise damaged(path, f"{'more than ' if len(data) > expected else ''}{min(len(data), expected)} bytes, expected {expected}")
    return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)


class _Limited:
    """A stream that refuses to give more than so many bytes, so that a small archive cannot unpack to a large one."""

    def __init__(self, stream: Any, limit: int) -> None:
        self.stream, self.left = stream, limit

    def read(self, count: int) -> bytes:
        data = self.stream.read(min(count, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise ValueError("it unpacks to more than the published archive")
        return data


def read_members(path: str, limits: Mapping[str, int]) -> dict[str, bytes]:
    """From a .tar.gz the members with these base names, each of at most so many bytes; nothing is written to disk."""
    found: dict[str, bytes] = {}
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file, gzip.GzipFile(fileobj=file) as unpacked:
            stream = _Limited(unpacked, sum(limits.values()) + (8 << 20))
            with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]  # any object with `read` will do
                for member in archive:
                    name = os.path.basename(member.name)
                    if name in limits and member.isreg() and name not in found:
                        if member.size > limits[name]:
                            raise ValueError(f"{name} has {member.size} bytes")
                        content = archive.extractfile(member)
                        found[name] = content.read() if content else b""
    except _DAMAGED as error:
        raise damaged(path, str(error)) from None
    if missing := [name for name in limits if name not in found]:
        raise damaged(path, f"no {missing[0]} in it")
    return found


def cifar_binary(path: str, data: bytes, records: int, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [n, 32, 32, 3] and labels from CIFAR's binary version: per record the label bytes (the last one counts) and 3 x 32 x 32."""
    import numpy as np

    if len(data) != records * (label_bytes + 3072):
        raise damaged(path, f"{len(data)} bytes, expected {records * (label_bytes + 3072)}")
    rows = np.frombuffer(data, np.uint8).reshape(records, -1)
    return _pictures(rows[:, label_bytes:]), rows[:, label_bytes - 1].astype(np.int64)


def cifar_python(path: str, data: bytes, records: int, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """The same from CIFAR's Python version, a pickle."""
    import numpy as np

    try:
        batch = _unpickle(data)
        fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        raw, labels = fields["data"].raw, np.array(fields[label_key], dtype=np.int64)
        if isinstance(raw, str):
            raw = raw.encode("latin-1")
        if len(raw) != records * 3072 or labels.shape != (records,):
            raise ValueError(f"{labels.shape[:1]} labels and {len(raw)} bytes of pictures, expected {records} and {records * 3072}")
    except Exception as error:
        raise damaged(path, str(error) or type(error).__name__) from None
    return _pictures(np.frombuffer(raw, np.uint8).reshape(records, 3072)), labels


def _pictures(rows: np.ndarray) -> np.ndarray:

    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _unpickle(data: bytes) -> dict[Any, Any]:
    """A pickle of plain values and uint8 arrays. What it names is replaced by stand-ins: not even NumPy's own code runs."""

    class Array:
        raw: bytes | str = b""

        def __init__(self, *_: object) -> None: ...

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            _version, _shape, kind, columns_first, raw = state
            if not isinstance(kind, Kind) or kind.name not in ("u1", b"u1") or columns_first:
                raise pickle.UnpicklingError("an array that is not of bytes, row by row")
            self.raw = raw

    class Kind:
        def __init__(self, name: str | bytes = "", *_: object) -> None:
            self.name = name

        def __setstate__(self, state: object) -> None: ...

    def encode(text: str, *_: object) -> bytes:
        return text.encode("latin-1")

    stand_ins: dict[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): Array,
        ("numpy._core.multiarray", "_reconstruct"): Array,
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): Kind,
        ("_codecs", "encode"): encode,
    }

    # The one written in Python: the C one allocates as many memo slots as the largest number a pickle mentions.
    class Reader(pickle._Unpickler):  # type: ignore[name-defined, misc]  # which the stubs leave out
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in stand_ins:
                raise pickle.UnpicklingError(f"it asks to run {printable(f'{module}.{name}')}, which is not allowed")
            return stand_ins[module, name]

    batch = Reader(io.BytesIO(data), encoding="bytes").load()
    if not isinstance(batch, dict):
        raise TypeError("not a dictionary")
    return batch

"""IDX files (the format of MNIST), plain or gzipped, read without an array library."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

from compress.errors import DataError

MAX_BYTES = 2**31
UNSIGNED_BYTE = 0x08


def find_idx(folder: Path, name: str) -> Path | None:
    """Return `name` or `name.gz` in the folder, the plain file first; None if neither exists."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx(path: Path, rank: int) -> tuple[tuple[int, ...], bytes]:
    """Read an IDX file of unsigned bytes.

    Args:
        path: the file, gzipped if it ends in .gz.
        rank: expected number of axes: 3 for images, 1 for labels.

    Returns:
        The shape, and the values in C order.

    Raises:
        DataError: truncated, too long, not IDX, another type or rank, or damaged gzip data.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            shape = _read_shape(file.read(4), file.read(4 * rank), rank, path)
            size = math.prod(shape)
            values = file.read(size + 1)  # one more, so that trailing bytes and the checksum are seen
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, f"the gzip data are damaged: {error}") from error
    if len(values) != size:
        got = f"at least {size + 1}" if len(values) > size else str(len(values))
        raise _damaged(path, f"the header promises {size} bytes of shape {shape}, got {got}")
    return shape, values


def _read_shape(magic: bytes, axes: bytes, rank: int, path: Path) -> tuple[int, ...]:
    if magic != bytes((0, 0, UNSIGNED_BYTE, rank)):
        expected = bytes((0, 0, UNSIGNED_BYTE, rank)).hex()
        raise _damaged(
            path, f"not an IDX file of unsigned bytes with {rank} axes: got magic {magic.hex()}, expected {expected}"
        )
    if len(axes) != 4 * rank:
        raise _damaged(path, f"the header is truncated: got {4 + len(axes)} bytes, expected {4 + 4 * rank}")
    shape = struct.unpack(f">{rank}I", axes)
    if 0 in shape or math.prod(shape) > MAX_BYTES:
        raise _damaged(path, f"the header gives shape {shape}, expected axes above 0 and at most {MAX_BYTES} bytes")
    return shape


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"damaged IDX file: {reason}", where=str(path), hint="fetch the file again")

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from compress.data.idx import find_idx, read_idx
from compress.errors import DataError

GOOD = struct.pack(">4B3I", 0, 0, 8, 3, 2, 1, 3) + bytes(range(6))


def test_plain_and_gzipped_files_read_alike(tmp_path: Path) -> None:
    plain, packed = tmp_path / "images", tmp_path / "images.gz"
    plain.write_bytes(GOOD)
    packed.write_bytes(gzip.compress(GOOD, mtime=0))
    assert read_idx(plain, 3) == read_idx(packed, 3) == ((2, 1, 3), bytes(range(6)))
    assert find_idx(tmp_path, "images") == plain
    plain.unlink()
    assert find_idx(tmp_path, "images") == packed
    assert find_idx(tmp_path, "labels") is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("i", GOOD[:-1], "promises 6 bytes of shape .2, 1, 3., got 5"),
        ("i", GOOD + b"x", "got at least 7"),
        ("i", GOOD[:10], "header is truncated: got 10 bytes, expected 16"),
        ("i", b"", "got magic , expected 00000803"),
        ("i", b"\x89PNG" + GOOD, "got magic 89504e47, expected 00000803"),
        ("i", struct.pack(">4BI", 0, 0, 8, 1, 2) + b"ab", "got magic 00000801"),
        ("i", struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**31, 9), "at most 2147483648 bytes"),
        ("i", struct.pack(">4B3I", 0, 0, 8, 3, 0, 2, 2), "axes above 0"),
        ("i.gz", GOOD, "gzip data are damaged: Not a gzipped file"),
        ("i.gz", gzip.compress(GOOD, mtime=0)[:-9], "gzip data are damaged"),
        ("i.gz", gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), "gzip data are damaged: CRC check failed"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, 3)
    assert (caught.value.exit_code, caught.value.where) == (5, str(path))


def outcome(path: Path) -> object:
    try:
        return read_idx(path, 3)
    except DataError as error:
        return error.exit_code


def test_every_damaged_byte_of_a_gzip_file_is_noticed_or_harmless(tmp_path: Path) -> None:
    path, packed = tmp_path / "i.gz", gzip.compress(GOOD, mtime=0)
    path.write_bytes(packed)
    good = read_idx(path, 3)
    for position in range(len(packed)):
        path.write_bytes(packed[:position] + bytes([packed[position] ^ 0xFF]) + packed[position + 1 :])
        assert outcome(path) in (good, 5)  # bytes of the gzip header that carry no data are harmless

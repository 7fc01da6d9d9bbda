import hashlib
import json
import os
import time

import pytest

from compress.artifacts.fingerprint import (
    FileHashes,
    canonical_json,
    document_digest,
    payload_digest,
    sha256_bytes,
    sha256_file,
)


def test_canonical_json_is_one_text_per_document():
    assert canonical_json({"b": [1, 2.5, None, True], "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.5,null,true]}'
    assert canonical_json({"a": (1,)}) == canonical_json({"a": [1]})
    assert canonical_json(1.0) != canonical_json(1)
    assert canonical_json({}) == b"{}"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_numbers_that_are_not_finite_have_no_canonical_form(bad):
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(bad)


@pytest.mark.parametrize("bad", [{1: "a"}, {"a": [{None: 1}]}, {"a": object()}, {"a": {1, 2}}])
def test_values_without_a_json_form_are_refused(bad):
    with pytest.raises(TypeError):
        canonical_json(bad)


def test_digests_are_sha256(tmp_path):
    data = os.urandom(3 << 20)
    path = tmp_path / "f"
    path.write_bytes(data)
    assert sha256_bytes(data) == sha256_file(path) == hashlib.sha256(data).hexdigest()
    assert document_digest({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()


def test_payload_digest_depends_on_names_and_hashes_alone():
    one = payload_digest({"a": "1", "b": "2"})
    assert one == payload_digest({"b": "2", "a": "1"})
    assert len({one, payload_digest({"a": "2", "b": "1"}), payload_digest({"a": "1"}), payload_digest({})}) == 4


def aged(path, seconds=60):
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def test_hashes_are_remembered_until_the_file_changes(tmp_path):
    data, memo = tmp_path / "data", tmp_path / "store" / ".hashes.json"
    data.write_bytes(b"one")
    aged(data)
    hashes = FileHashes(memo)
    assert hashes.sha256(data) == sha256_bytes(b"one")
    hashes.save()
    # A forged memo shows where an answer comes from.
    entries = json.loads(memo.read_bytes())
    entries[str(data)][3] = "remembered"
    memo.write_text(json.dumps(entries))
    assert FileHashes(memo).sha256(data) == "remembered"
    assert FileHashes(memo, rehash=True).sha256(data) == sha256_bytes(b"one")
    data.write_bytes(b"two")
    aged(data, 30)
    assert FileHashes(memo).sha256(data) == sha256_bytes(b"two")


def test_files_that_may_still_change_within_their_time_stamp_are_not_remembered(tmp_path):
    data, memo = tmp_path / "data", tmp_path / ".hashes.json"
    data.write_bytes(b"new")
    hashes = FileHashes(memo)
    hashes.sha256(data)
    hashes.save()
    assert not memo.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "\x00"])
def test_a_damaged_memo_is_an_empty_one(tmp_path, content):
    data, memo = tmp_path / "data", tmp_path / ".hashes.json"
    data.write_bytes(b"x")
    memo.write_text(content)
    assert FileHashes(memo).sha256(data) == sha256_bytes(b"x")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        FileHashes().sha256(tmp_path / "none")

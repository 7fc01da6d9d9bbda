from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from compress.cli import process
from compress.errors import CompressError, DataError, RecipeError, TryAgainError, UnavailableError


def raising(error: BaseException):
    def command() -> None:
        raise error

    return command


def test_success_is_zero() -> None:
    assert process.call(lambda: None) == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError("r"), 2),
        (DataError("d"), 5),
        (UnavailableError("u"), 7),
        (TryAgainError("t"), 75),
        (CompressError("c"), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(3), 3),
        (SystemExit(None), 0),
        (SystemExit("a reason"), 1),
        (SystemExit(2.0), 1),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert process.call(raising(error)) == code


def test_explained_errors_reach_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    process.call(raising(DataError("3 images, expected 100", where="data/cat", hint="add images")))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: 3 images, expected 100\n  where: data/cat\n  next:  add images\n"


def test_our_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        process.call(lambda: 1 / 0)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, even where the tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(10)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "inter")]
)
def test_signals(number: int, code: int, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    start = time.monotonic()
    assert process.call(lambda: send(number)) == code
    assert time.monotonic() - start < 5
    assert capsys.readouterr().err.startswith(word)
    assert signal.getsignal(signal.SIGTERM) is before


def test_clean_up_runs_on_sigterm() -> None:
    cleaned = []

    def command() -> None:
        try:
            send(signal.SIGTERM)
        finally:
            cleaned.append(True)

    assert process.call(command) == 143
    assert cleaned == [True]


def test_except_exception_does_not_stop_sigterm() -> None:
    def command() -> None:
        try:
            send(signal.SIGTERM)
        except Exception:
            pytest.fail("a handler of ordinary errors caught it")

    assert process.call(command) == 143

"""How the process begins and ends: signals, explained errors, exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from compress.errors import EXIT_SIGINT, EXIT_SIGTERM, CompressError


class Terminated(BaseException):
    """SIGTERM arrived; a BaseException, so that nothing but clean-up handles it on the way out."""


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    # Whoever asks a second time does not want to wait for the clean-up of the first.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def call(command: Callable[[], Any]) -> int:
    """Run the command line and return the exit code that its end deserves.

    Args:
        command: parses the arguments and does the work; a usage error ends it with SystemExit 2.

    Returns:
        The exit code; explained errors were printed to standard error.

    Raises:
        Exception: whatever is no `CompressError` is our bug and keeps its traceback; the interpreter exits with 1.
    """
    with _sigterm_raises():
        try:
            command()
        except CompressError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        except Terminated:
            print("terminated; what was finished is kept, run it again to go on", file=sys.stderr)
            return EXIT_SIGTERM
        except KeyboardInterrupt:
            return _interrupted()
        except SystemExit as end:
            # As the interpreter does it: sys.exit("why") is a failure.
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            return _interrupted() if code == EXIT_SIGINT else code
    return 0


def _interrupted() -> int:
    print("interrupted; what was finished is kept, run it again to go on", file=sys.stderr)
    return EXIT_SIGINT

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator

import pytest

from compress import log


@pytest.fixture(autouse=True)
def _logger_as_before() -> Iterator[None]:
    logger = logging.getLogger(log.ROOT)
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before
    log._output.quiet = log._output.json = False


def test_names_lie_below_the_package() -> None:
    assert log.get_logger("compress.data.digits").name == "compress.data.digits"
    assert log.get_logger("example").name == "compress.example"
    assert log.get_logger("compressor").name == "compress.compressor"


def test_console_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    log.get_logger("x").info("kept %d", 3)
    log.get_logger("x").warning("odd")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "kept 3\nwarning: odd\n")


def test_quiet_leaves_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(quiet=True)
    log.get_logger("x").info("not this")
    log.get_logger("x").error("this")
    assert capsys.readouterr().err == "error: this\n"


def test_json_lines_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(json=True)
    try:
        raise ValueError("bad")
    except ValueError:
        log.get_logger("x").exception("a\nb")
    (line,) = capsys.readouterr().err.splitlines()
    document = json.loads(line)
    assert document["level"] == "error"
    assert document["logger"] == "compress.x"
    assert document["message"] == "a\nb"
    assert "ValueError: bad" in document["exception"]


def test_configuring_twice_prints_once(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    log.configure()
    log.get_logger("x").info("once")
    assert capsys.readouterr().err == "once\n"


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with log.progress("work", 3, "samples") as bar:
        bar.advance()
        bar.update(loss=0.5)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


ON_TERMINAL = """
import time
from compress import log
log.configure(quiet={quiet}, json={json})
with log.progress("outer", 2, "epochs") as outer:
    with log.progress("inner [3]", 4, "samples") as inner:
        for _ in range(3):
            inner.advance()
            time.sleep(0.05)
        inner.show(7, 9)
        inner.update(loss=0.123456)
        log._output.bars and log._output.bars.refresh()
        log.get_logger("x").warning("above the bar")
    outer.advance()
try:
    with log.progress("fails", None, "samples"):
        raise ValueError
except ValueError:
    assert log._output.bars is None
"""


def on_terminal(quiet: bool, json: bool) -> str:
    """What reaches a terminal of 100 columns."""
    main, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    code = ON_TERMINAL.format(quiet=quiet, json=json)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=child, env=environment)
    os.close(child)
    written = b""
    try:
        while chunk := os.read(main, 65536):
            written += chunk
    except OSError:  # the other end of a pseudo-terminal is closed: Linux reports that as an error
        pass
    os.close(main)
    assert process.wait(timeout=60) == 0, written.decode()
    return written.decode()


def test_progress_shows_rate_and_fields_on_a_terminal() -> None:
    shown = on_terminal(quiet=False, json=False)
    for part in ("outer", "inner [3]", "samples/s", "loss 0.1235", "warning: above the bar", " 7 "):
        assert part in shown


@pytest.mark.parametrize(("quiet", "json"), [(True, False), (False, True)])
def test_no_bar_when_quiet_or_for_machines(quiet: bool, json: bool) -> None:
    shown = on_terminal(quiet=quiet, json=json)
    assert "inner" not in shown
    assert "above the bar" in shown

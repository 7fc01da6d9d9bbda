"""Where each quantizer runs: a virtual environment of its own, made from pinned requirements, and a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TIME_LIMIT_S = 900
INSTALL_LIMIT_S = 1800
_LAST_LINES = 6


class ChildFailed(Exception):
    """A child process did not do its work; the message says why."""


def python_of(name: str | None, work: Path) -> Path:
    """The interpreter of an environment, which is created where it is missing or its requirements have changed.

    Args:
        name: of `requirements-NAME.txt`; None for the environment of this process.
        work: folder that holds the environments.

    Raises:
        ChildFailed: a package cannot be installed.
    """
    if name is None:
        return Path(sys.executable)
    folder = work / "environments" / name
    wanted = (HERE / f"requirements-{name}.txt").read_text()
    installed = folder / "installed.txt"
    python = folder / "bin" / "python"
    if installed.is_file() and installed.read_text() == wanted:
        return python
    run_child([sys.executable, "-m", "venv", "--clear", str(folder)], INSTALL_LIMIT_S)
    # The files name the whole closure, so that pip neither adds to it nor replaces a part of it.
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    run_child([*pip, "--requirement", str(HERE / f"requirements-{name}.txt")], INSTALL_LIMIT_S)
    installed.write_text(wanted)
    return python


def run_child(command: Sequence[str], limit_s: float = TIME_LIMIT_S) -> None:
    """Run a command to its end, without a GPU, telemetry or spinning threads.

    Raises:
        ChildFailed: it ended with another code than 0, or not in time.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_WAIT_POLICY": "PASSIVE",
        "CUDA_VISIBLE_DEVICES": "",
        "NNCF_CI": "1",  # switches its telemetry off
    }
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise ChildFailed(f"not done within {limit_s:g} s") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-_LAST_LINES:]
        raise ChildFailed(f"ended with {done.returncode}: " + " | ".join(line.strip() for line in lines))

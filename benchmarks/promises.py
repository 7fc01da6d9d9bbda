"""What the benchmarks share: running the command line tool, and holding figures against what was promised."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

_COMPARE = {"<=": operator.le, ">=": operator.ge, ">": operator.gt}


def compress(*arguments: str) -> Any:
    """Run the command line tool and return the JSON document that it prints."""
    command = [sys.executable, "-m", "compress", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if not done.stdout.strip():
        sys.exit(f"{' '.join(command)} exited {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def seconds(*arguments: str, times: int = 3) -> float:
    """Shortest wall time of a command that has to succeed, process start included."""
    command = [sys.executable, "-m", "compress", *arguments]
    taken: list[float] = []
    for _ in range(times):
        start = time.monotonic()
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        taken.append(time.monotonic() - start)
        if done.returncode:
            sys.exit(f"{' '.join(command)} exited {done.returncode}:\n{done.stderr}")
    return round(min(taken), 3)


def promise(what: str, value: float, sign: str, limit: float | None) -> dict[str, Any]:
    """One line of a result: `met` says whether the value keeps the limit; without a limit it is only reported."""
    row = {"what": what, "value": value, "is": sign, "limit": limit}
    return row if limit is None else {**row, "met": bool(_COMPARE[sign](value, limit))}


def write_result(path: Path, result: dict[str, Any]) -> int:
    """Write a result with its `promises`, print them, and return 3 if one is not met, else 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    for row in result["promises"]:
        mark = {True: "met", False: "NOT MET", None: "reported"}[row.get("met")]
        limit = "" if row["limit"] is None else f" ({row['is']} {row['limit']})"
        print(f"{mark:9} {row['what']}: {row['value']:.4f}{limit}")
    return 0 if all(row.get("met", True) for row in result["promises"]) else 3

"""`compress doctor`: what can run here, and what to install for the rest."""

from __future__ import annotations

from pathlib import Path

from compress.cli.places import store_root
from compress.cli.render import print_document, print_tables
from compress.engines import availability
from compress.engines.availability import Availability
from compress.report.tables import Table, size_text

# What a person would call the rows of the machine; the other rows are named like their libraries.
_WHAT = {"driver": "NVIDIA driver", "gpu": "NVIDIA GPU", "disk": "disk of the store"}


def check_machine(store: Path | None, *, as_json: bool) -> None:
    """Print one line for each library, the driver, the GPU and the disk; nothing is a failure here.

    Args:
        store: what `--store` said, for the free space.
        as_json: print the same facts as one document.
    """
    found = availability.check_machine(store_root(store), providers=True)
    if as_json:
        print_document({"checks": [check.as_json() for check in found]})
        return
    rows = tuple(
        (_WHAT.get(check.name, check.name), "yes" if check.available else "no", check.version or "", _says(check))
        for check in found
    )
    print_tables([Table("", ("what", "here", "version", "details"), rows)])
    missing = [check for check in found if not check.available and check.install_hint]
    if missing:
        print("\nfor the rest:")
    for check in missing:
        print(f"  {_WHAT.get(check.name, check.name)}: {check.install_hint}")


def _says(check: Availability) -> str:
    if not check.available:
        return check.reason
    match check.details:
        case {"providers": list(providers)}:
            return ", ".join(map(str, providers))
        case {"gpus": list(gpus)}:
            return "; ".join(_gpu(gpu) for gpu in gpus)
        case {"free_gib": free}:
            return f"{free} GiB free"
        case _:
            return ""


def _gpu(gpu: dict[str, object]) -> str:
    memory = size_text(int(str(gpu["memory_bytes"])))
    return f"{gpu['name']}, compute capability {gpu['compute_capability'] or 'unknown'}, {memory}"

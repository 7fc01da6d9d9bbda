"""The options that several commands share, and the words that some of them take."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file, e.g. pipelines/digits.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change one value of the recipe; repeatable.")
]
Forced = Annotated[list[str] | None, typer.Option("--force", metavar="STEP", help="Run it even on a hit; repeatable.")]
StoreOption = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="Default: artifacts/ beside the recipe's pyproject.toml.")
]
Gates = Annotated[
    list[str] | None,
    typer.Option("--gate", metavar="NAME=VALUE", help="A gate as in a recipe, e.g. top1_drop_pp=1; repeatable."),
]
Rehash = Annotated[bool, typer.Option("--rehash", help="Hash data files again, whatever their time stamps say.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, whole or absent.")]
MaxMib = Annotated[
    int, typer.Option(metavar="N", min=1, max=2048, help="Largest model, external data included, in MiB.")
]
Budget = Annotated[
    float | None, typer.Option(metavar="PP", min=0, max=100, help="Leave in float what top-1 needs; wants labels.")
]
Sqnr = Annotated[float | None, typer.Option(metavar="DB", min=1, max=150, help="Leave in float what the SQNR needs.")]
Minimize = Annotated[
    str | None, typer.Option(metavar="work|latency", help="Of such choices the least work in float, or latency.")
]
JudgeFile = Annotated[
    Path | None, typer.Option("--judge", metavar="FILE.npz", help="Choose layers on these samples; default: --data.")
]
Labels = Annotated[str | None, typer.Option(metavar="ARRAY", help="Class of each sample; default: label or labels.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: standard output.")]


class ComparisonFormat(StrEnum):
    """How a comparison is shown."""

    TABLE = "table"
    JSON = "json"
    MD = "md"
    JUNIT = "junit"
    HTML = "html"


class ReportFormat(StrEnum):
    """How a report is shown."""

    TABLE = "table"
    JSON = "json"
    MD = "md"
    HTML = "html"


class Device(StrEnum):
    """Where a run is validated."""

    CUDA = "cuda"
    CPU = "cpu"


class LintTarget(StrEnum):
    """Whose demands a linted file is held against."""

    TENSORRT = "tensorrt"
    ONNXRUNTIME = "onnxruntime"

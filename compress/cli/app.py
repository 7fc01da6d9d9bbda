"""The commands. Each one parses, calls, prints; everything heavy is imported where it is used."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import typer.main

from compress import __version__, log
from compress.cli import process
from compress.errors import EXIT_OK, UsageError

# Rich help and pretty tracebacks would double the start-up time, and a traceback is for us, not for the user.
app = typer.Typer(
    name="compress",
    help="From a PyTorch teacher to a small int8 ONNX model and a TensorRT engine, with the evidence.",
    no_args_is_help=True,
    add_completion=False,  # its options, like Typer's own --help, would import pydantic: see `options`
    add_help_option=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file, e.g. pipelines/digits.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change one value of the recipe; repeatable.")
]
Forced = Annotated[list[str] | None, typer.Option("--force", metavar="STEP", help="Run it even on a hit; repeatable.")]
StoreOption = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="Default: artifacts/ beside the recipe's pyproject.toml.")
]
Rehash = Annotated[bool, typer.Option("--rehash", help="Hash data files again, whatever their time stamps say.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, whole or absent.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: standard output.")]


class ReportFormat(StrEnum):
    """How a report is shown."""

    TABLE = "table"
    JSON = "json"
    MD = "md"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"compress {__version__}")
        raise typer.Exit


def _print_help(context: typer.Context, wanted: bool) -> None:
    if wanted:
        print(context.get_help())
        raise typer.Exit


@app.callback()
def options(
    help: Annotated[
        bool,
        typer.Option("--help", callback=_print_help, is_eager=True, help="Show this message and exit."),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """From a PyTorch teacher to a small int8 ONNX model and a TensorRT engine, with the evidence."""
    # Typer's own --help of a group has no default, and where a value is missing Typer imports pydantic, which
    # would double the start-up time of `compress run --help`. This one is False where it is not given.


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(metavar="STEP", help="Stop after this step.")] = None,
    only: Annotated[str | None, typer.Option(metavar="STEP", help="This step alone; its inputs must be hits.")] = None,
    force: Forced = None,
    store: StoreOption = None,
    lock_timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Wait for another writer.")] = 600.0,
    rehash: Rehash = False,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings, gates and the last lines only.")] = False,
) -> None:
    """Run a recipe; what is there already is reused."""
    from compress.cli.running import RunOptions, run_recipe

    log.configure(quiet=quiet, json=json)
    options = RunOptions(until, only, force or [], lock_timeout, rehash, as_json=json, quiet=quiet)
    _end(run_recipe(recipe, overrides or [], store, options))


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    force: Forced = None,
    store: StoreOption = None,
    rehash: Rehash = False,
    json: Json = False,
) -> None:
    """Say for every step whether it would run, and why."""
    from compress.cli.running import plan_recipe

    log.configure(json=json)
    plan_recipe(recipe, overrides or [], store, force=force or [], rehash=rehash, as_json=json)


@app.command("ls")
def list_store(store: StoreOption = None, json: Json = False) -> None:
    """List the runs and artifacts of a store."""
    from compress.cli.listing import list_contents

    log.configure(json=json)
    list_contents(store, as_json=json)


@app.command()
def show(
    ref: Annotated[str, typer.Argument(metavar="REF", help="Key prefix, run id or RUN:STEP.")],
    store: StoreOption = None,
    json: Json = False,
) -> None:
    """Show one artifact or run: a manifest, what is in an engine."""
    from compress.cli.showing import show_reference

    log.configure(json=json)
    show_reference(ref, store, as_json=json)


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run id; `compress ls` lists them.")],
    format: Annotated[
        ReportFormat | None, typer.Option(help="For people, programs or pull requests; default: table.")
    ] = None,
    output: Output = None,
    store: StoreOption = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Print a run's benchmark with the verdicts of its gates."""
    from compress.cli.reporting import print_report

    if json and format not in (None, ReportFormat.JSON):
        raise UsageError(f"--json and --format {format.value} contradict each other", hint="give one of them")
    form = ReportFormat.JSON if json else format or ReportFormat.TABLE
    log.configure(json=form is ReportFormat.JSON)
    print_report(run, form.value, output, store)


@app.command()
def schema(
    output: Output = None,
    json: Annotated[bool, typer.Option("--json", help="Changes nothing: a schema is JSON.")] = False,
) -> None:
    """Print the JSON schema of recipes, for editors."""
    from compress.cli.reporting import print_schema

    log.configure(json=json)
    print_schema(output)


@app.command()
def doctor(store: StoreOption = None, json: Json = False) -> None:
    """Say what can run here, and what to install for the rest."""
    from compress.cli.checking import check_machine

    log.configure(json=json)
    check_machine(store, as_json=json)


def _end(exit_code: int) -> None:
    if exit_code != EXIT_OK:
        raise typer.Exit(exit_code)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of `compress` and `python -m compress`; always ends in SystemExit or our bug's traceback."""
    # OpenMP reads it when torch is loaded: idle threads that spin steal the cores from the next variant's session.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command = typer.main.get_command(app)
    sys.exit(process.call(lambda: command(arguments, prog_name="compress")))

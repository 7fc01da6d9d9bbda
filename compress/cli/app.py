"""The commands. Each one parses, calls, prints; everything heavy is imported where it is used."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import typer.main

from compress import __version__, log
from compress.cli import process
from compress.cli.options import (
    Budget,
    ComparisonFormat,
    Device,
    Forced,
    Gates,
    Json,
    JudgeFile,
    Labels,
    LintTarget,
    MaxMib,
    Minimize,
    Output,
    Overrides,
    RecipePath,
    Rehash,
    ReportFormat,
    Sqnr,
    StoreOption,
)
from compress.errors import EXIT_OK, UsageError
from compress.quantization.settings import CACHE_VERSION

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


def _chosen(given: ReportFormat | ComparisonFormat | None, json: bool) -> str:
    """The format asked for, after the log has been set to match it."""
    if json and given not in (None, "json"):
        raise UsageError(f"--json and --format {given.value} contradict each other", hint="give one of them")
    form = "json" if json else given.value if given else "table"
    log.configure(json=form == "json")
    return form


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
    gate: Gates = None,
    store: StoreOption = None,
    lock_timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Wait for another writer.")] = 600.0,
    rehash: Rehash = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Profile a few steps of each training; not of hits.")
    ] = False,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings, gates and the last lines only.")] = False,
) -> None:
    """Run a recipe; what is there already is reused."""
    from compress.cli.running import RunOptions, run_recipe

    log.configure(quiet=quiet, json=json)
    options = RunOptions(until, only, force or [], lock_timeout, rehash, as_json=json, quiet=quiet, profile=profile)
    _end(run_recipe(recipe, overrides or [], store, options, gates=gate or []))


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


@app.command()
def tune(
    recipe: RecipePath,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Processes that work here.")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL|FILE", help="A database or a journal file that workers share; default: in the store."
        ),
    ] = None,
    study: Annotated[str | None, typer.Option(metavar="NAME", help="Default: the recipe's name.")] = None,
    best: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="Write the best recipe there.")] = None,
    trial: Annotated[int | None, typer.Option(metavar="N", min=0, help="Take this trial for the best.")] = None,
    store: StoreOption = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and the last lines only.")] = False,
    helper: Annotated[bool, typer.Option("--helper", hidden=True)] = False,
) -> None:
    """Find the best values of a recipe's `tune.space`; started again it goes on, and several workers may share it."""
    from compress.cli.tuning import TuneOptions, tune_recipe

    log.configure(quiet=quiet, json=json)
    options = TuneOptions(
        overrides or [], workers, storage, study, best, trial, as_json=json, quiet=quiet, helper=helper
    )
    _end(tune_recipe(recipe, store, options))


@app.command("ls")
def list_store(store: StoreOption = None, json: Json = False) -> None:
    """List the runs, tags and artifacts of a store."""
    from compress.cli.listing import list_contents

    log.configure(json=json)
    list_contents(store, as_json=json)


@app.command()
def tag(
    name: Annotated[str, typer.Argument(metavar="NAME", help="E.g. main; a name that is there moves.")],
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run id, or another tag.")],
    store: StoreOption = None,
    json: Json = False,
) -> None:
    """Give a run a name, which then stands wherever a run id does."""
    from compress.cli.listing import tag_run

    log.configure(json=json)
    tag_run(name, run, store, as_json=json)


@app.command()
def show(
    ref: Annotated[str, typer.Argument(metavar="REF", help="Key prefix, run id, tag or RUN:STEP.")],
    store: StoreOption = None,
    json: Json = False,
) -> None:
    """Show one artifact or run: a manifest, what is in an engine."""
    from compress.cli.showing import show_reference

    log.configure(json=json)
    show_reference(ref, store, as_json=json)


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run id or tag; `compress ls` lists them.")],
    format: Annotated[
        ReportFormat | None, typer.Option(help="For people, programs, pull requests or browsers; default: table.")
    ] = None,
    output: Output = None,
    gate: Gates = None,
    store: StoreOption = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Print a run's benchmark with the verdicts of its gates; --gate judges others instead, and sets the exit code."""
    from compress.cli.reporting import print_report

    _end(print_report(run, _chosen(format, json), output, store, gates=gate or []))


@app.command()
def compare(
    base: Annotated[str, typer.Argument(metavar="BASE", help="report.json, run, RUN:STEP or tag.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The same; held against BASE.")],
    format: Annotated[ComparisonFormat | None, typer.Option(help="Default: table.")] = None,
    output: Output = None,
    gate: Gates = None,
    informational: Annotated[
        bool, typer.Option("--informational", help="Figures without verdicts, whatever the conditions were.")
    ] = False,
    store: StoreOption = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Say what changed from BASE to NEW, and whether it is real; with --gate, those decide."""
    from compress.cli.comparing import print_comparison

    _end(
        print_comparison(base, new, _chosen(format, json), output, store, gates=gate or [], informational=informational)
    )


@app.command()
def validate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run id, tag or RUN:STEP; finished.")],
    device: Annotated[Device, typer.Option(help="cuda: its engines; cpu: its int8 ONNX files.")] = Device.CUDA,
    step: Annotated[str | None, typer.Option(metavar="STEP", help="Which benchmark, if it has several.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: where the run found it; for its data and gates.")
    ] = None,
    overrides: Overrides = None,
    gate: Gates = None,
    store: StoreOption = None,
    json: Json = False,
) -> None:
    """Measure a finished run's engine or int8 ONNX again on this machine, against the run's reference."""
    from compress.cli.validating import ValidateOptions, validate_reference

    log.configure(json=json)
    options = ValidateOptions(device.value, step, recipe, overrides or [], gate or [], as_json=json)
    _end(validate_reference(run, store, options))


@app.command()
def bench(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="ONNX files and engines; first the base.")],
    inputs: Annotated[
        Path | None, typer.Option("--input", metavar="FILE.npz", help="Arrays by input name; default: synthetic.")
    ] = None,
    batch: Annotated[str | None, typer.Option(metavar="1,32", help="Samples per call; default: 1 and 32.")] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", help="CPU threads; default: all.")] = None,
    graphs: Annotated[bool, typer.Option("--cuda-graphs", help="Start each batch of an engine as one graph.")] = False,
    budget: Annotated[str, typer.Option(metavar="30s|2m|10m", help="How long is measured, about.")] = "30s",
    gate: Annotated[
        list[str] | None, typer.Option("--gate", metavar="NAME=VALUE", help="latency_ratio=1.05 sets the exit code.")
    ] = None,
    informational: Annotated[bool, typer.Option("--informational", help="Exit 0, whatever is found.")] = False,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the order and of synthetic inputs.")] = 0,
    json: Json = False,
) -> None:
    """Measure model files together and say which is faster; no recipe needed."""
    from compress.cli.benching import BenchOptions, bench_files

    log.configure(json=json)
    options = BenchOptions(inputs, batch, threads, graphs, budget, gate or [], informational, seed, as_json=json)
    _end(bench_files(files, options))


@app.command("lint")
def lint_model(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="From any exporter, float or quantized.")],
    target: Annotated[LintTarget, typer.Option(help="Whose demands count.")] = LintTarget.TENSORRT,
    max_mib: MaxMib = 2048,
    json: Json = False,
) -> None:
    """Say what a builder would refuse in an ONNX file, or silently run in float; exit 5 where there is an error."""
    from compress.cli.linting import lint_file

    log.configure(json=json)
    _end(lint_file(file, target.value, max_mib=max_mib, as_json=json))


@app.command("quantize")
def quantize_model(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="A float model from any exporter.")],
    data: Annotated[
        Path, typer.Option(metavar="FILE.npz", help="Calibration samples: arrays by input name; labels if known.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR|FILE.onnx", help="Default: NAME-int8/.")
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="METHOD", help="minmax, moving_average, percentile, entropy or mse.")
    ] = "mse",
    percentile: Annotated[
        float | None, typer.Option(metavar="P", help="Of |x|, for --method percentile; default: 99.99.")
    ] = None,
    weights: Annotated[str, typer.Option(metavar="METHOD", help="Range of weights: max or mse.")] = "max",
    granularity: Annotated[
        str, typer.Option(metavar="KIND", help="Scales of weights: per_channel or per_tensor.")
    ] = "per_channel",
    float_layer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Node or pattern left in float; repeatable.")
    ] = None,
    budget_pp: Budget = None,
    sqnr_db: Sqnr = None,
    minimize: Minimize = None,
    judge: JudgeFile = None,
    labels: Labels = None,
    samples: Annotated[int | None, typer.Option(metavar="N", min=1, help="Use N, evenly spaced; default: all.")] = None,
    value_range: Annotated[
        str, typer.Option("--range", metavar="LOW,HIGH|any", help="What values the samples may have.")
    ] = "0,1",
    cache_version: Annotated[
        str, typer.Option(metavar=CACHE_VERSION, help="TensorRT that calibration.cache is for; others skip it.")
    ] = CACHE_VERSION,
    max_mib: MaxMib = 2048,
    json: Json = False,
) -> None:
    """Quantize an ONNX file to int8: a file for TensorRT, its twin for ONNX Runtime, the scales."""
    from compress.cli.choosing import ChoiceOptions
    from compress.cli.quantizing import QuantizeOptions, quantize_file
    from compress.quantization.settings import QuantizeSettings

    log.configure(json=json)
    left = tuple(float_layer or ())
    if percentile is not None and method != "percentile":
        raise UsageError(f"--percentile {percentile:g} belongs to --method percentile, not {method}")
    share = QuantizeSettings.percentile if percentile is None else percentile
    settings = QuantizeSettings(method, share, weights, granularity, left)  # type: ignore[arg-type]
    choice = ChoiceOptions(budget_pp, sqnr_db, minimize, judge)
    options = QuantizeOptions(data, output, samples, value_range, cache_version, max_mib, json, labels, choice)
    quantize_file(file, settings, options)


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
    # Of GNU OpenMP, torch's on Linux: about a millisecond before they sleep. Without it every operator of a training
    # step wakes them anew, which made steps of a few hundred milliseconds 10 to 25 % longer on two cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "50000")
    command = typer.main.get_command(app)
    sys.exit(process.call(lambda: command(arguments, prog_name="compress")))

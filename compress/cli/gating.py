"""`--gate NAME=VALUE`: gates from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.errors import UsageError
from compress.pipeline.validation import validate
from compress.pipeline.yaml_tree import Tree, nearest, parse
from compress.report.document import ReportDocument, VerdictLike
from compress.report.gates import AGAINST_FLOAT_TWIN, GatesConfig, untimed_batches

LATENCY = "latency_ratio"
_HINT = """for example: --gate top1_drop_pp=1 --gate 'latency_ratio={"1": 1.05, "32": 1.1}'"""


def gates_from_options(options: Sequence[str]) -> GatesConfig:
    """Read gates as a recipe's `gates:` would be read.

    Args:
        options: each `NAME=VALUE`, the value in YAML; the last one of a name counts.

    Raises:
        UsageError: a gate that does not exist, the nearest is named; or a value that does not fit. All are listed.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    tree = Tree()
    for option in options:
        name, equals, text = (part.strip() for part in option.partition("="))
        source = f"--gate {option}"
        if not equals or not name or not text:
            problems.append(f"{source}: expected NAME=VALUE")
        elif name not in GatesConfig.model_fields:
            problems.append(f"{source}: unknown gate {name!r}{nearest(name, GatesConfig.model_fields)}")
        else:
            value = parse(text, source, lines=False)
            problems += value.problems
            if not value.problems:
                values[name] = value.value
                tree.origins[("gates", name)] = source
    gates = validate(GatesConfig, values, ("gates",), tree)
    problems += tree.problems
    if problems or gates is None:
        raise UsageError("; ".join(problems), hint=_HINT)
    return gates


def latency_limit(options: Sequence[str]) -> float | None:
    """Read the one gate that needs no recipe, `latency_ratio`; the last one given holds.

    Args:
        options: each `latency_ratio=LIMIT`, the limit above 0.

    Raises:
        UsageError: another gate, or no such limit.
    """
    limit = None
    for option in options:
        name, _, value = option.partition("=")
        if name != LATENCY:
            raise UsageError(f"--gate {option}: bench has no gate {name!r}; it judges {LATENCY} alone")
        try:
            limit = float(value)
        except ValueError:
            limit = 0.0
        if not 0 < limit < float("inf"):
            raise UsageError(f"--gate {option}: expected a ratio above 0, e.g. {LATENCY}=1.05")
    return limit


def check_answered(gates: GatesConfig, verdicts: Sequence[VerdictLike], document: ReportDocument) -> None:
    """Refuse gates that gave no verdict: a gate that judges nothing would pass unseen.

    Args:
        gates: from the command line.
        verdicts: what judging them gave.
        document: the report that was judged.

    Raises:
        UsageError: nothing in the report can be judged by a gate, or `require` names no variant of it.
    """
    names = [variant.name for variant in document.variants]
    problems = [
        f"--gate require: the report has no variant {name!r}{nearest(name, names)}"
        for name in gates.require
        if name not in names
    ]
    timed = {row.batch for variant in document.variants for row in variant.latency}
    problems += [f"--gate {gate}: {wrong}" for gate, wrong in untimed_batches(gates, timed)]
    answered = {verdict.gate for verdict in verdicts}
    for gate, limit in gates:
        if gate != "require" and limit is not None and gate not in answered:
            needs = " beside its float twin" if gate in AGAINST_FLOAT_TWIN else ""
            problems.append(f"--gate {gate}: the report has no quantized variant{needs} to judge")
    if problems:
        raise UsageError("; ".join(problems), hint=_HINT)


def overrides_from_gates(options: Sequence[str]) -> list[str]:
    """Return `--set` overrides of a recipe's gates that say the same.

    Raises:
        UsageError: as `gates_from_options`.
    """
    if options:
        gates_from_options(options)
    return [f"gates.{option.strip()}" for option in options]

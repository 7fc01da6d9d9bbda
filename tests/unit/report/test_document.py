from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from compress.errors import ArtifactError
from compress.report.document import (
    ReportDocument,
    Verdict,
    joined_report,
    report_from_json,
    report_json,
    report_schema,
    stored_schema,
)
from compress.report.gates import GatesConfig, judge

Report = Callable[..., ReportDocument]


def test_the_shipped_schema_is_that_of_the_model() -> None:
    assert stored_schema() == report_schema(), (
        "write compress.report.document.schema_json() to compress/report/report.schema.json"
    )


def test_a_report_survives_the_disk_and_fits_the_shipped_schema(report: Report) -> None:
    document = report()
    stored = report_json(document)
    assert report_from_json(stored) == document
    assert report_json(report_from_json(stored)) == stored
    assert stored.endswith(b"}\n")
    jsonschema.validate(json.loads(stored), stored_schema())


def test_the_documented_fields_are_there_under_their_names(report: Report) -> None:
    found = json.loads(report_json(report()))
    top = "schema_version run reference float_twin split n variants ladder environment lineage"
    assert set(top.split()) <= set(found)
    int8, engine = found["variants"][2:]
    fields = "name kind status reason top1 top1_interval agreement mean_kl parameters size_bytes latency ratio_to_float"
    assert set(fields.split()) <= set(int8)
    assert set("batch p50_ms p90_ms p99_ms n".split()) <= set(int8["latency"][0])
    assert set("batch ratio low high".split()) <= set(int8["ratio_to_float"][0])
    fields = {"hop", "top1", "agreement", "sqnr_db", "max_abs", "cosine"}
    assert [set(hop) for hop in found["ladder"]] == [fields] * 2
    assert found["ladder"][0]["sqnr_db"] is None
    assert (engine["status"], engine["reason"], engine["top1"]) == ("not run", "no NVIDIA driver", None)
    assert int8["top1_interval"][0] < int8["top1"] < int8["top1_interval"][1] <= 1


def test_joining_adds_the_run_and_its_verdicts_and_still_fits_the_schema(report: Report) -> None:
    document = report()
    verdicts = judge(GatesConfig(top1_drop_pp=3.0, require=("engine",)), document)
    joined = joined_report(document, "20250101-abc", verdicts)
    assert document.run is None
    assert document.gates is None
    found = json.loads(report_json(joined))
    jsonschema.validate(found, stored_schema())
    assert found["run"] == "20250101-abc"
    assert [(g["gate"], g["variant"], g["verdict"]) for g in found["gates"]] == [
        ("top1_drop_pp", "int8", "pass"),
        ("top1_drop_pp", "engine", "not run"),
        ("require", "engine", "not run"),
    ]


def test_joining_takes_verdicts_of_another_class_with_the_same_fields(report: Report) -> None:
    class Stored:
        gate, variant, verdict, limit, value, unit, detail = "top1_drop_pp", "int8", "pass", 3.0, 0.9, "pp", "why"

    joined = joined_report(report(), "r", [Stored()])
    assert joined.gates == [
        Verdict(gate="top1_drop_pp", variant="int8", verdict="pass", limit=3.0, value=0.9, unit="pp", detail="why")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "the report is not JSON"),
        (b"\xff\xfe", "the report is not JSON"),
        ("[]", "schema version None, expected 1"),
        ('{"schema_version": 2}', "schema version 2, expected 1"),
        ('{"schema_version": 1}', "does not fit its schema: reference: Field required"),
    ],
)
def test_a_file_that_is_no_report_is_refused(content: bytes | str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as error:
        report_from_json(content, "artifacts/benchmark/abc/report.json")
    assert error.value.exit_code == 6
    assert error.value.where == "artifacts/benchmark/abc/report.json"
    assert error.value.hint == "run the benchmark again: compress run RECIPE --force STEP"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reference": "nobody"}, "reference must be one of the variants"),
        ({"float_twin": "nobody"}, "float_twin must be one of the variants"),
        ({"float_twin": None}, "int8: has a ratio to a float twin that was not measured"),
        ({"float_twin": "engine"}, "int8: has a ratio to a float twin that was not measured"),
        ({"float_twin": "teacher"}, "int8: a ratio needs one kind of session, got onnxruntime cpu and torch cpu"),
        ({"n": 0}, "greater than or equal to 1"),
        ({"gate": []}, "Extra inputs are not permitted"),
        ({"int8": {"top1": 97.8}}, "less than or equal to 1"),
        ({"int8": {"top1": None}}, "int8: measured, but top1, top1_interval, agreement or mean_kl is null"),
        ({"int8": {"status": "not run"}}, "int8: not run, but no reason given"),
        ({"int8": {"status": "not run", "reason": "why"}}, "int8: not run, but carries measurements"),
        ({"int8": {"mean_kl": float("nan")}}, "finite number"),
        ({"int8": {"kind": "onnx"}}, "'checkpoint', 'onnx_model', 'quantized_onnx' or 'engine'"),
        ({"int8": {"name": "float"}}, "variants must have different names"),
        ({"int8": {"paired_to_float": {"gained": 5, "lost": 6, "n": 10}}}, "must not exceed n, got 5 \\+ 6 of 10"),
    ],
)
def test_a_report_that_contradicts_itself_is_refused(report: Report, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        report(**fields)


def test_variants_are_found_by_name(report: Report) -> None:
    assert report().variant("int8").kind == "quantized_onnx"
    with pytest.raises(KeyError, match="nobody"):
        report().variant("nobody")

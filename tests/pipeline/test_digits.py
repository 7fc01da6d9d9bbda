"""What `pipelines/digits.yaml` promises: measured whole, over three seeds."""

from __future__ import annotations

import json

import pytest

from compress.measure.statistics import tango_noninferiority

SEEDS = (0, 1, 2)
MARGIN = 0.03


@pytest.fixture(scope="module")
def reports(root, cli, tmp_path_factory):
    """The reports of three whole runs, by seed."""
    store = tmp_path_factory.mktemp("store")
    found = {}
    for seed in SEEDS:
        settings = [
            "--set",
            f"seed={seed}",
            "--set",
            "steps.report.latency={blocks: 6, slot_iterations: 5, warmup_ms: 1, processes: 2}",
        ]
        run = cli("run", root / "pipelines" / "digits.yaml", *settings, "--store", store, "--json", timeout=600)
        assert run.returncode == 0, run.stderr
        name = json.loads(run.stdout)["run"]
        found[seed] = json.loads(cli("report", name, "--store", store, "--format", "json").stdout)
    return found


def variant(report, name):
    return next(one for one in report["variants"] if one["name"] == name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_each_seed_keeps_its_accuracy_in_a_tenth_of_the_parameters(reports, seed):
    teacher, int8 = variant(reports[seed], "teacher"), variant(reports[seed], "int8")

    assert teacher["top1"] >= 0.98
    assert teacher["top1"] - int8["top1"] <= MARGIN
    assert teacher["parameters"] >= 10 * int8["parameters"]


@pytest.mark.slow
def test_the_pooled_seeds_are_not_inferior(reports):
    pairs = [variant(report, "int8")["paired_to_reference"] for report in reports.values()]
    gained, lost, n = (sum(pair[key] for pair in pairs) for key in ("gained", "lost", "n"))

    assert n == 3 * 450
    assert tango_noninferiority(gained, lost, n, MARGIN).decision == "pass"

"""Every shipped recipe, whole but shrunk: it runs, it is judged, and a second run is nothing but hits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

CIFAR = ("cifar100_resnet32x4_8x4.yaml", "cifar100_resnet56_20.yaml", "cifar100_wrn40_2_16_2.yaml")
RUN = (
    *("bring_your_own.yaml", CIFAR[2], "digits.yaml", "fashion_mnist.yaml"),
    *("ptq.yaml", "teacher_assistant.yaml", "vit.yaml"),
)


def test_no_recipe_is_left_out(root):
    assert {path.name for path in (root / "pipelines").rglob("*.yaml")} == {*RUN, *CIFAR}


def test_the_cifar_recipes_differ_in_their_networks_alone(root):
    def rest(name):
        recipe = YAML(typ="safe", pure=True).load(root / "pipelines" / name)
        assert recipe.pop("name") == name.removesuffix(".yaml")
        assert recipe["gates"].pop("top1_drop_pp") > 0
        student = [recipe["steps"][step]["model"] for step in ("alone", "student", "control")]
        assert student[0] == student[1] == student[2]
        for step in ("teacher", "alone", "student", "control"):
            del recipe["steps"][step]["model"]
        return recipe

    assert rest(CIFAR[0]) == rest(CIFAR[1]) == rest(CIFAR[2])  # so that running one of them is enough


@pytest.mark.parametrize("name", CIFAR)
def test_a_recipe_without_its_data_says_how_to_get_it(name, root, cli, tmp_path):
    done = cli("plan", root / "pipelines" / name, "--set", f"data.path={tmp_path}", "--store", tmp_path)

    assert done.returncode == 5
    assert "missing train.bin, test.bin, fine_label_names.txt" in done.stderr
    assert "curl -L https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz | tar -xz" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_recipe_runs_and_runs_again_from_the_store(name, root, cli, shrunk, tmp_path):
    recipe = root / "pipelines" / name
    if name == "fashion_mnist.yaml" and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("Fashion-MNIST is not here: apt-get install dataset-fashion-mnist")
    arguments = ["run", recipe, *shrunk(name), "--store", tmp_path, "--json"]

    first = cli(*arguments, timeout=600)

    # Shrunk models need not pass their gates (3) or decide them (4); everything else is a failure.
    assert first.returncode in (0, 3, 4), first.stderr
    document = json.loads(first.stdout)
    assert {step["status"] for step in document["steps"]} == {"run"}
    assert document["exit_code"] == first.returncode
    assert document["gates"]
    verdicts = {(gate["variant"], gate["verdict"]) for gate in document["gates"]}
    assert ("engine", "not run") in verdicts or shutil.which("nvidia-smi")

    report = json.loads(cli("report", document["run"], "--store", tmp_path, "--format", "json").stdout)
    variants = {variant["name"]: variant for variant in report["variants"]}
    assert variants["int8"]["status"] == "measured"
    assert {row["batch"] for row in variants["int8"]["latency"]} == {1, 32}
    assert {row["batch"] for row in variants["int8"]["ratio_to_float"]} == {1, 32}
    facts = variants["engine"]["facts"]
    assert facts["int8_convolutions"] == facts["convolutions"] > 0
    assert facts["int8_gemms"] == facts["gemms"] > 0
    rungs = [rung["hop"] for rung in report["ladder"]]
    assert rungs[0] == report["reference"]
    assert rungs[-1] == "int8 -> engine"

    second = cli(*arguments, timeout=60)
    again = json.loads(second.stdout)
    assert {step["status"] for step in again["steps"]} == {"hit"}
    assert [step["key"] for step in again["steps"]] == [step["key"] for step in document["steps"]]
    assert again["gates"] == document["gates"], "a warm run judges as the cold one did"
    assert second.returncode == first.returncode

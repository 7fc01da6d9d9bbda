"""What lies at the top, what is pinned, and that recipes and schemas fit the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import compress

CIFAR = ("cifar100_resnet32x4_8x4", "cifar100_resnet56_20", "cifar100_wrn40_2_16_2")  # nothing of their data is here
RECIPES = ("bring_your_own", *CIFAR, "digits", "fashion_mnist", "ptq", "teacher_assistant", "vit")
TOP = {
    ".ci", ".dockerignore", ".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "artifacts", "benchmarks",
    "compress", "constraints.txt", "docker", "docs", "examples", "pipelines", "pyproject.toml", "tests",
}  # fmt: skip


def git(root: Path, *arguments: str) -> str:
    """Output of git, or a skip where there is none, e.g. in an image."""
    try:
        return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no git repository here: {error}")


def test_nothing_else_lies_at_the_top(root: Path) -> None:
    tracked = {line.split("/")[0] for line in git(root, "ls-files").splitlines()}
    assert tracked <= TOP


def test_artifacts_are_not_tracked(root: Path) -> None:
    assert git(root, "check-ignore", "artifacts/train/0123", ".venv/x") == "artifacts/train/0123\n.venv/x\n"
    assert "artifacts/README.md" not in git(root, "ls-files", "--others", "--ignored", "--exclude-standard")
    assert "compress/artifacts/manifest.py" not in git(root, "ls-files", "--others", "--ignored", "--exclude-standard")


def recipes(root: Path) -> list[Path]:
    return sorted(root.rglob("pipelines/**/*.yaml"))


def test_every_recipe_is_known(root: Path) -> None:
    assert [path.stem for path in recipes(root)] == list(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_loads(root: Path, name: str) -> None:
    from compress.pipeline.recipe import load_recipe
    from compress.stages import CATALOGUE

    recipe = load_recipe(root / "pipelines" / f"{name}.yaml", [], CATALOGUE)
    assert recipe.name == name.replace("_", "-") or recipe.name == name
    assert recipe.steps


@pytest.mark.parametrize("name", RECIPES)
def test_fine_tuning_with_fake_quant_has_its_control_in_float(root: Path, name: str) -> None:
    from compress.pipeline.recipe import load_recipe
    from compress.stages import CATALOGUE

    recipe = load_recipe(root / "pipelines" / f"{name}.yaml", [], CATALOGUE)
    (report,) = [step for step in recipe.steps if step.stage.name == "benchmark"]
    tuned = [step for step in recipe.steps if step.stage.name == "qat"]
    assert len(tuned) == (0 if name == "ptq" else 1)
    for qat in tuned:
        control = recipe.step("control")
        shared = type(qat.config).model_fields.keys() & type(control.config).model_fields.keys()
        assert {"epochs", "batch_size", "learning_rate", "weight_decay", "kd_weight"} <= shared
        for field in shared:
            assert getattr(control.config, field) == getattr(qat.config, field), field
        assert control.roles == qat.roles
        networks = [getattr(step.config, "model", None) for step in (control, recipe.step(*qat.roles["student"]))]
        assert networks[0] == networks[1]
        assert networks[0] is not None
        assert {"control", "float", "int8"} <= set(report.roles["variants"])


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_fits_the_schema_that_it_names(root: Path, name: str) -> None:
    import jsonschema
    from ruamel.yaml import YAML

    path = root / "pipelines" / f"{name}.yaml"
    first = path.read_text(encoding="utf-8").splitlines()[0]
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert found, f"an editor finds no schema in the first line: {first}"
    schema = json.loads((path.parent / found[1]).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(YAML(typ="safe", pure=True).load(path), schema)


def test_the_shipped_recipe_schema_is_current(root: Path) -> None:
    from compress.cli.reporting import schema_text

    shipped = root / "compress" / "pipeline" / "recipe.schema.json"
    assert shipped.read_text(encoding="utf-8") == schema_text() + "\n", (
        "compress schema -o compress/pipeline/recipe.schema.json"
    )


def test_the_readme_recipe_is_the_shipped_one(root: Path) -> None:
    from ruamel.yaml import YAML

    text = (root / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    shown = YAML(typ="safe", pure=True).load(block)
    shipped = YAML(typ="safe", pure=True).load(root / "pipelines" / "digits.yaml")
    assert list(shown["steps"]) == list(shipped["steps"])
    for name, step in shown["steps"].items():
        assert step == {key: shipped["steps"][name].get(key) for key in step}, name


def test_the_map_names_every_module_and_nothing_else(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^  ([\w/]+\.py) ", text, re.M))
    modules = {path.relative_to(root / "compress").as_posix() for path in (root / "compress").rglob("*.py")}
    assert listed == {name for name in modules if not name.endswith("__init__.py")}


def requirements(root: Path) -> dict[str, list[str]]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"runtime": project["dependencies"], **project["optional-dependencies"]}
    return {name: [re.split(r"[\[>=;~! ]", line)[0] for line in lines] for name, lines in groups.items()}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned(root: Path) -> None:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {normal(name) for name in pins}
    groups = requirements(root)
    for name in [*groups["runtime"], *groups["dev"], "pycuda"]:
        assert normal(name) in pinned, name
    assert pins["torch"] == "2.13.0"
    assert not any("+" in version for version in pins.values())


def test_pins_are_what_is_tested(root: Path) -> None:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {normal(name): version for name, version in (line.split("==") for line in lines if not line.startswith("#"))}
    installed = {normal(found.name): found.version.split("+")[0] for found in metadata.distributions()}
    differing = {
        name: (pins[name], installed[name]) for name in pins.keys() & installed if pins[name] != installed[name]
    }
    assert not differing, "pinned, installed"


def test_one_version(root: Path) -> None:
    assert metadata.version("compress") == compress.__version__
    assert f"## {compress.__version__}" in (root / "CHANGELOG.md").read_text(encoding="utf-8")


def test_images_are_run_as_a_user_who_may_write_to_the_mounted_folder(root: Path) -> None:
    files = [root / "README.md", *sorted((root / "docker").iterdir())]
    text = "\n".join(re.sub(r"\\\n#? *", "", path.read_text(encoding="utf-8")) for path in files)
    mounting = [line for line in text.splitlines() if "docker run" in line and " -v " in line]
    assert len(mounting) >= 3
    for line in mounting:
        assert '--user "$(id -u):$(id -g)" -e HOME=/tmp' in line, line


def test_the_ci_image_runs_what_ci_runs(root: Path) -> None:
    text = (root / "docker" / "Dockerfile.cpu").read_text(encoding="utf-8")
    (stage,) = re.findall(r"^FROM base AS ci$(.*?)^FROM", text, re.M | re.S)
    assert 'CMD ["make", "test"]' in stage
    assert "ln --symbolic /opt/venv .venv" in stage
    assert re.search(r"install .* git make", stage)


def test_layers(root: Path) -> None:
    command = [str(Path(sys.executable).parent / "lint-imports")]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_ci_runs_the_tests(root: Path) -> None:
    script = root / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text(encoding="utf-8").rstrip().endswith("make test")

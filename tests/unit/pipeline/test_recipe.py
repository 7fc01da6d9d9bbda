import json
import os
from pathlib import Path

import jsonschema
import pytest

from compress.errors import RecipeError
from compress.pipeline.recipe import load_recipe, recipe_schema

HEAD = "name: toy\ndata: {path: data}\nsteps:\n"


@pytest.fixture
def load(toy, tmp_path, monkeypatch):
    """Load a recipe's text, called r.yaml in messages."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, *overrides: str):
        Path("r.yaml").write_text(text)
        return load_recipe(Path("r.yaml"), overrides, toy.CATALOGUE)

    return load


def problems(load, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    assert caught.value.exit_code == 2
    first, *lines = caught.value.message.splitlines()
    assert first == f"r.yaml has {len(lines)} problem{'' if len(lines) == 1 else 's'}:"
    return [line.strip() for line in lines]


def test_a_recipe_becomes_steps(load, toy, tmp_path):
    recipe = load(toy.RECIPE)
    assert (recipe.name, recipe.seed, recipe.data.path, recipe.base) == ("toy", 3, "data", tmp_path)
    assert [step.name for step in recipe.steps] == ["teacher", "student", "onnx", "report"]
    report = recipe.step("report")
    assert report.roles == {"reference": ("teacher",), "variants": ("onnx",)}
    assert report.inputs == ("teacher", "onnx")
    assert recipe.upstream("onnx") == ("teacher", "student")
    assert recipe.upstream("student", "onnx") == ("teacher", "student")
    assert recipe.step("teacher").config.temperature == 2.0
    assert recipe.gates.verdicts == {}


def test_numbers_and_words_are_those_of_yaml_1_2(load):
    recipe = load(HEAD + "  a: {stage: train, temperature: 1e-3, text: on}\n")
    assert recipe.step("a").config.temperature == 1e-3
    assert recipe.step("a").config.text == "on"


def test_anchors_share_values(load):
    recipe = load(
        HEAD + "  a: {stage: train, text: a, model: &net {name: x}}\n  b: {stage: train, text: b, model: *net}\n"
    )
    assert recipe.step("b").config.model.name == "x"


def test_steps_may_be_written_in_any_order(load):
    recipe = load(
        HEAD + "  c: {stage: export, model: b}\n  b: {stage: distill, teacher: a}\n  a: {stage: train, text: t}\n"
    )
    assert [step.name for step in recipe.steps] == ["a", "b", "c"]


def test_a_required_role_is_inferred_from_the_only_earlier_step_and_an_optional_one_never(load):
    recipe = load(HEAD + "  a: {stage: train, text: t}\n  b: {stage: distill}\n  c: {stage: train, text: u}\n")
    assert recipe.step("b").roles == {"teacher": ("a",)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            HEAD + "  a: {stage: train, text: t}\n  b: {stage: train, text: u}\n  c: {stage: export}\n",
            ["r.yaml:6: steps.c: model is ambiguous; name one of the candidates: a, b"],
        ),
        (HEAD + "  c: {stage: export}\n", ["r.yaml:4: steps.c: model takes Checkpoint, and no earlier step makes one"]),
        (
            HEAD + "  c: {stage: export}\n  a: {stage: train, text: t}\n",
            ["r.yaml:4: steps.c: model takes Checkpoint, and no earlier step makes one"],
        ),
        (
            HEAD + "  a: {stage: train, text: t}\n  o: {stage: export}\n  d: {stage: distill, teacher: o}\n",
            [
                "r.yaml:6: steps.d.teacher: teacher takes Checkpoint, but step 'o' makes OnnxModel; candidates: a",
            ],
        ),
        (
            HEAD + "  teacher: {stage: train, text: t}\n  o: {stage: export, model: techer}\n",
            ["r.yaml:5: steps.o.model: model names the unknown step 'techer'; nearest: 'teacher'"],
        ),
        (
            HEAD + "  a: {stage: train, text: t}\n  b: {stage: train, text: t}\n  o: {stage: export, model: [a, b]}\n",
            ["r.yaml:6: steps.o.model: model takes one step, got 2"],
        ),
        (
            HEAD + "  a: {stage: train, text: t}\n  d: {stage: distill, teacher: [a, a]}\n",
            ["r.yaml:5: steps.d.teacher: teacher names 'a' twice"],
        ),
        (
            HEAD + "  a: {stage: train, text: t}\n  d: {stage: distill, teacher: []}\n",
            ["r.yaml:5: steps.d.teacher: teacher needs at least one step; candidates: a"],
        ),
        (
            HEAD + "  a: {stage: train, text: t}\n  d: {stage: distill, teacher: {a: 1}}\n",
            ["r.yaml:5: steps.d.teacher: teacher is a step's name or a list of them, got {'a': 1}"],
        ),
        (
            HEAD + "  a: {stage: distill, teacher: b}\n  b: {stage: distill, teacher: c}\n"
            "  c: {stage: distill, teacher: b}\n",
            ["r.yaml:5: steps: a cycle: b <- c <- b"],
        ),
        (HEAD + "  a: {stage: distill, teacher: a}\n", ["r.yaml:4: steps: a cycle: a <- a"]),
        (
            HEAD + "  a: {stage: trian, text: t}\n",
            ["r.yaml:4: steps.a.stage: unknown stage 'trian'; nearest: 'train'"],
        ),
        (
            HEAD + "  a: {text: t}\n",
            ["r.yaml:4: steps.a: missing key 'stage'; known stages: benchmark, distill, export, train"],
        ),
        (HEAD + "  a: train\n", ["r.yaml:4: steps.a: a step is a mapping with `stage`, got 'train'"]),
        (HEAD + "  a: {stage: train}\n", ["r.yaml:4: steps.a: missing key 'text'"]),
        (
            HEAD + "  a:\n    stage: train\n    text: t\n    temprature: 4\n",
            ["r.yaml:7: steps.a.temprature: unknown key 'temprature'; nearest: 'temperature'"],
        ),
        (
            HEAD + "  a:\n    stage: train\n    text: t\n    model:\n      widhts: [1]\n",
            ["r.yaml:8: steps.a.model: unknown key 'widhts'; nearest: 'widths'"],
        ),
        (
            HEAD + "  a: {stage: train, text: t,\n      temperature: 0}\n",
            ["r.yaml:5: steps.a.temperature: Input should be greater than 0, got 0"],
        ),
        (
            HEAD + "  a: {stage: train, text: t, model: {widths: [1, x]}}\n",
            [
                "r.yaml:4: steps.a.model.widths.1: Input should be a valid integer, unable to parse string as an "
                "integer, got 'x'"
            ],
        ),
        (
            HEAD + "  a: {stage: train, text: t}\n  a: {stage: train, text: u}\n",
            ["r.yaml:5: duplicate key 'a', first at r.yaml:4"],
        ),
        (
            HEAD + "  a: {stage: train, text: t, model: {name: x,\n  name: y}}\n",
            ["r.yaml:5: duplicate key 'name', first at r.yaml:4"],
        ),
        ("name: toy\n", ["r.yaml: steps: expected a mapping of at least one step"]),
        ("name: toy\nsteps:\n", ["r.yaml:2: steps: expected a mapping of at least one step"]),
        (
            "name: toy\nsteps: {a: {stage: train, text: t}}\n",
            ["r.yaml: missing key 'data', which step 'a' reads"],
        ),
        (HEAD + "  a: {stage: train, text: t}\nsede: 3\n", ["r.yaml:5: unknown key 'sede'; nearest: 'seed'"]),
        (
            HEAD + "  a: {stage: train, text: t}\nseed: -1\n",
            ["r.yaml:5: seed: expected an integer from 0 to 4294967295, got -1"],
        ),
        (
            HEAD.replace("toy", "a/b") + "  a: {stage: train, text: t}\n",
            ["r.yaml:1: name: expected a letter, then letters, digits, - or _; got 'a/b'"],
        ),
        (
            HEAD + "  data: {stage: train, text: t}\n  1: {stage: train, text: t}\n",
            [
                "r.yaml:4: steps.data: the step's name is a key of the recipe (name, seed, data, steps, gates, tune)",
                "r.yaml:5: keys must be strings, got '1'; put it in quotes",
            ],
        ),
        (
            HEAD + "  a: {stage: train, text: t}\ngates: {vedicts: {}}\n",
            ["r.yaml:5: gates: unknown key 'vedicts'; nearest: 'verdicts'"],
        ),
        (
            HEAD + "  a: {stage: train, text: t, temperature: .inf}\n",
            [
                "r.yaml:4: .inf is not a finite number",
                "r.yaml:4: steps.a.temperature: Input should be a valid number, got None",
            ],
        ),
        (
            HEAD + "  a: {stage: train, text: !!python/name:os.system x}\n",
            [
                "r.yaml:4: the tag tag:yaml.org,2002:python/name:os.system is not supported",
                "r.yaml:4: steps.a.text: Input should be a valid string, got None",
            ],
        ),
        (HEAD + "  a: {stage: train, text: *x}\n", ["r.yaml:4: found undefined alias 'x'"]),
        (HEAD + "  a: {stage: train, text: [}\n", ["r.yaml:4: expected the node content, but found '}'"]),
        (HEAD + "  a: {stage: train, text: t}\n---\nname: b\n", ["r.yaml:5: but found another document"]),
        ("- a\n", ["r.yaml:1: a recipe is a mapping, got a list"]),
        ("42\n", ["r.yaml:1: a recipe is a mapping, got a number"]),
        ("&a [*a]\n", ["r.yaml:1: an alias contains itself"]),
    ],
)
def test_problems_have_lines(load, text, expected):
    assert problems(load, text) == expected


def test_gates_that_can_never_be_judged_are_refused_with_their_lines(load, toy):
    gates = "gates:\n  verdicts: {never: pass, top1: pass, never2: pass}\n"
    assert problems(load, toy.RECIPE + gates) == [
        "r.yaml:10: gates.verdicts: never can never be judged",
        "r.yaml:10: gates.verdicts: never2 can never be judged",
    ]
    only = HEAD + "  a: {stage: train, text: t}\n"
    assert problems(load, only + gates) == ["r.yaml:5: gates: nothing is measured"]
    (found,) = problems(load, toy.RECIPE, "gates.verdicts.never=pass")
    assert found == "--set gates.verdicts.never=pass: gates.verdicts: never can never be judged"


def test_gates_are_checked_beside_other_problems_but_not_against_steps_that_are_unknown(load):
    gates = "gates: {verdicts: {top1: pass}}\n"
    assert problems(load, HEAD + "  a: {stage: train, text: t, temperature: 0}\n" + gates) == [
        "r.yaml:4: steps.a.temperature: Input should be greater than 0, got 0",
        "r.yaml:5: gates: nothing is measured",
    ]
    for step in ("{stage: bench}", "{stage: benchmark, reference: z, variants: [a]}", "{stage: distill, teacher: b}"):
        found = problems(load, HEAD + f"  a: {{stage: train, text: t}}\n  b: {step}\n" + gates)
        assert all(": steps" in line for line in found), found


def test_merge_keys_are_refused(load):
    text = HEAD + "  a: &a {stage: train, text: t}\n  b: {<<: *a}\n"
    assert "merge keys (<<) are not supported" in problems(load, text)[0]


def test_every_problem_is_told_at_once_in_the_order_of_lines(load):
    text = HEAD + (
        "  a: {stage: train, txt: t, temperature: -1}\n"
        "  b: {stage: nope}\n"
        "  c: {stage: export, model: zz}\n"
        "gate: {}\n"
    )  # fmt: skip
    found = problems(load, text, "a.x.y=1", "zz.x=1")
    assert [line.split(": ")[0] for line in found] == [
        *["r.yaml:4"] * 3,
        "r.yaml:5",
        "r.yaml:6",
        "r.yaml:7",
        "--set zz.x=1",
        "--set a.x.y=1",
    ]


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_recipe_says_so(load, text):
    with pytest.raises(RecipeError, match="the recipe is empty") as caught:
        load(text)
    assert caught.value.exit_code == 2
    assert "name, seed, data, steps, gates" in caught.value.hint


def test_files_that_are_no_recipes(toy, tmp_path):
    with pytest.raises(RecipeError, match="there is no such recipe") as caught:
        load_recipe(tmp_path / "none.yaml", [], toy.CATALOGUE)
    assert (caught.value.exit_code, caught.value.where) == (2, str(tmp_path / "none.yaml"))
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path, [], toy.CATALOGUE)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"name: \xff\n")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(binary, [], toy.CATALOGUE)
    binary.write_bytes(b"name: a\x00b\n")
    with pytest.raises(RecipeError, match="special characters are not allowed"):
        load_recipe(binary, [], toy.CATALOGUE)


def test_aliases_of_aliases_are_refused(load):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
    assert any("aliases of aliases?" in line for line in problems(load, "\n".join(lines)))


@pytest.mark.parametrize(
    ("override", "step", "field", "value"),
    [
        ("teacher.temperature=4", "teacher", "temperature", 4.0),
        ("steps.teacher.temperature=1e-1", "teacher", "temperature", 0.1),
        ("teacher.text=a=b", "teacher", "text", "a=b"),
        ("onnx.keep = 3", "onnx", "keep", 3),
    ],
)
def test_overrides_replace_values(load, toy, override, step, field, value):
    assert getattr(load(toy.RECIPE, override).step(step).config, field) == value


def test_overrides_reach_fields_that_the_recipe_does_not_mention(load, toy):
    recipe = load(
        toy.RECIPE, "teacher.model.widths=[1, 2]", "teacher.model.name=cnn", "gates.verdicts.a=pass", "seed=9"
    )
    assert recipe.step("teacher").config.model.widths == (1, 2)
    assert recipe.step("teacher").config.model.name == "cnn"
    assert recipe.gates.verdicts == {"a": "pass"}
    assert recipe.seed == 9


def test_overrides_can_rewire_steps(load, toy):
    assert load(toy.RECIPE, "onnx.model=teacher").step("onnx").roles == {"model": ("teacher",)}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("teacher", "expected PATH=VALUE, e.g. --set teacher.epochs=2"),
        ("=3", "expected PATH=VALUE, e.g. --set teacher.epochs=2"),
        ("a..b=3", "expected PATH=VALUE, e.g. --set teacher.epochs=2"),
        ("techer.text=x", "unknown key or step 'techer'; nearest: 'teacher'"),
        ("steps.techer.text=x", "the recipe has no step 'techer'; nearest: 'teacher'"),
        ("steps={}", "replaces all steps; name one, e.g. --set steps.teacher.epochs=2"),
        ("teacher.txt=x", "steps.teacher.txt: unknown key 'txt'; nearest: 'text'"),
        ("teacher.text.x=1", "steps.teacher.text is 'abc', which has no 'x'"),
        ("teacher.temperature=[1", "expected ',' or ']', but got '<stream end>'"),
        ("teacher.temperature=-1", "steps.teacher.temperature: Input should be greater than 0, got -1.0"),
        ("teacher.model={name: a, name: b}", "duplicate key 'name'"),
        ("teacher.model.nmae=a", "steps.teacher.model: unknown key 'nmae'; nearest: 'name'"),
        ("data.pth=x", "data: unknown key 'pth'; nearest: 'path'"),
        (
            "onnx.model=report",
            "steps.onnx.model: model takes Checkpoint, but step 'report' makes Report; candidates: teacher, student",
        ),
    ],
)
def test_bad_overrides_name_themselves(load, toy, override, expected):
    (found,) = problems(load, toy.RECIPE, override)
    assert found.replace("got -1.0", "got -1") == f"--set {override}: {expected}".replace("got -1.0", "got -1")


def test_the_schema_accepts_recipes_and_refuses_what_loading_refuses(toy):
    schema = recipe_schema(toy.CATALOGUE)
    json.dumps(schema, allow_nan=False)
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    good = {
        "name": "toy",
        "data": {"path": "."},
        "steps": {"a": {"stage": "train", "text": "t"}, "o": {"stage": "export", "model": "a"}},
        "gates": {"verdicts": {}},
    }
    assert list(validator.iter_errors(good)) == []
    for change in (
        {"steps": {"a": {"stage": "trian", "text": "t"}}},
        {"steps": {"a": {"stage": "train", "txt": "t"}}},
        {"steps": {"a": {"stage": "train", "text": "t", "temperature": 0}}},
        {"steps": {}},
        {"seed": -1},
        {"sede": 1},
        {"data": {"pth": "."}},
    ):
        assert list(validator.iter_errors({**good, **change})), change


def test_a_recipe_is_found_from_anywhere(toy, tmp_path):
    path = toy.project(tmp_path / "p")
    relative = Path(os.path.relpath(path))
    assert load_recipe(relative, [], toy.CATALOGUE).base == path.parent.resolve()

import pytest

from compress.pipeline.yaml_tree import nearest, parse


def test_values_know_their_lines():
    tree = parse("a:\n  b: 1\n  c: [x,\n    y]\n", "f.yaml")
    assert tree.value == {"a": {"b": 1, "c": ["x", "y"]}}
    assert tree.problems == []
    assert tree.origin(("a", "b")) == "f.yaml:2"
    assert tree.origin(("a", "c", 1)) == "f.yaml:4"
    assert tree.origin(("a", "b", "no", "such")) == "f.yaml:2"  # the nearest that was written down
    assert tree.origin(("z",)) == "f.yaml"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("0o17", 15),
        ("017", 17),
        ("1_000", 1000),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("~", None),
        ("2020-01-01", "2020-01-01"),
        ("'1'", "1"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    tree = parse(text, "x", lines=False)
    assert tree.problems == []
    assert tree.value == value
    assert type(tree.value) is type(value)


def test_all_problems_of_a_text_are_collected():
    tree = parse("a: 1\na: 2\n[x]: 3\nb: .nan\nc: !!set {}\n", "f")
    assert [problem.split(": ")[0] for problem in tree.problems] == ["f:2", "f:3", "f:4"]
    assert tree.value["a"] == 1


def test_nearest_names_one_or_lists_all():
    assert nearest("epcohs", ["epochs", "seed"]) == "; nearest: 'epochs'"
    assert nearest("zzz", ["epochs", "seed"]) == "; known: epochs, seed"
    assert nearest("zzz", []) == ""

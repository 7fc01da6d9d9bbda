"""YAML 1.2 to plain values that still know their lines; every problem is collected, none ends the reading."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# ruamel.yaml leaves most of its attributes without types.

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

Path = tuple[str | int, ...]
_MAX_NODES = 20_000  # aliases of aliases grow exponentially; no recipe comes near
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("str", "timestamp", "binary")}
_TYPED = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}


@dataclass
class Tree:
    """What a YAML text says.

    `origins` maps the path of every key and item to where it stands, e.g. `digits.yaml:7`;
    `problems` are complete sentences, each with its place.
    """

    value: Any = None
    origins: dict[Path, str] = field(default_factory=dict[Path, str])
    problems: list[str] = field(default_factory=list[str])

    @property
    def mapping(self) -> dict[str, Any]:
        """The value as a mapping; empty if it is none."""
        return cast("dict[str, Any]", self.value) if isinstance(self.value, dict) else {}

    def origin(self, path: Path) -> str:
        """Where `path`, or the nearest thing around it that was written down, stands."""
        for length in range(len(path), -1, -1):
            if (found := self.origins.get(path[:length])) is not None:
                return found
        return ""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; nearest: 'x'` if a known name resembles `name`, else the known names, else nothing."""
    names = sorted(set(known))
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.6):
        return f"; nearest: {close[0]!r}"
    return f"; known: {', '.join(names)}" if names else ""


def parse(text: str, source: str, *, lines: bool = True) -> Tree:
    """Read one YAML document.

    Args:
        text: the document.
        source: what it is called in messages, e.g. the file's path.
        lines: add the line's number to `source`.

    Returns:
        The value, None for an empty document; `problems` lists duplicate keys, keys that are no
        strings, foreign tags, numbers that are not finite, and errors of syntax.
    """
    tree = Tree(origins={(): source})
    reader = YAML(typ="safe", pure=True)
    try:
        node = cast("Node | None", reader.compose(text))
    except MarkedYAMLError as error:
        mark = cast("Any", error.problem_mark)
        place = f"{source}:{mark.line + 1}" if mark is not None and lines else source
        tree.problems.append(f"{place}: {error.problem or error}")
        return tree
    except YAMLError as error:  # characters that YAML does not allow
        tree.problems.append(f"{source}: {' '.join(str(error).split())}")
        return tree
    if node is not None:
        tree.value = _Walk(tree, source, lines, reader).visit(node, ())
    return tree


@dataclass
class _Walk:
    tree: Tree
    source: str
    lines: bool
    reader: YAML
    open: list[Node] = field(default_factory=list[Node])
    visited: int = 0

    def place(self, node: Node) -> str:
        return f"{self.source}:{cast('Any', node.start_mark).line + 1}" if self.lines else self.source

    def problem(self, node: Node, message: str) -> None:
        self.tree.problems.append(f"{self.place(node)}: {message}")

    def visit(self, node: Node, path: Path) -> Any:
        self.tree.origins.setdefault(path, self.place(node))
        self.visited += 1
        if any(outer is node for outer in self.open):
            self.problem(node, "an alias contains itself")
            return None
        if self.visited > _MAX_NODES:
            if self.visited == _MAX_NODES + 1:
                self.problem(node, f"more than {_MAX_NODES} values; aliases of aliases?")
            return None
        if isinstance(node, ScalarNode):
            return self.scalar(node)
        self.open.append(node)
        try:
            if isinstance(node, MappingNode):
                return self.mapping(node, path)
            children = cast("list[Node]", node.value)
            return [self.visit(child, (*path, index)) for index, child in enumerate(children)]
        finally:
            self.open.pop()

    def mapping(self, node: Node, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in cast("list[tuple[Node, Node]]", node.value):
            tag, key = str(key_node.tag), cast("Any", key_node.value)
            if tag.endswith(":merge"):
                self.problem(key_node, "merge keys (<<) are not supported; an alias (*name) as a value is")
            elif tag not in _PLAIN:
                shown = repr(key) if isinstance(key, str) else "a list or mapping"
                self.problem(key_node, f"keys must be strings, got {shown}; put it in quotes")
            elif key in found:
                first = self.tree.origin((*path, key))
                self.problem(key_node, f"duplicate key {key!r}" + (f", first at {first}" if self.lines else ""))
            else:
                self.tree.origins[*path, key] = self.place(key_node)
                found[key] = self.visit(value_node, (*path, key))
        return found

    def scalar(self, node: Node) -> Any:
        tag = str(node.tag)
        if tag in _PLAIN:
            return str(cast("Any", node.value))
        if tag not in _TYPED:
            self.problem(node, f"the tag {tag} is not supported")
            return None
        constructor = self.reader.constructor
        value = constructor.construct_object(node)
        if isinstance(value, float) and not math.isfinite(value):
            self.problem(node, f"{cast('Any', node.value)} is not a finite number")
            return None
        return value

"""The `steps:` of a recipe: configs validated, roles filled, put in order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from compress.pipeline.roles import Role, roles_of
from compress.pipeline.stage import Stage, StageConfig
from compress.pipeline.validation import validate
from compress.pipeline.yaml_tree import Tree, nearest

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Step:
    """A named entry of a recipe, validated."""

    name: str
    stage: Stage[Any, Any]
    config: StageConfig
    roles: dict[str, tuple[str, ...]] = field(hash=False)  # filled roles only -> names of steps

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the steps that it reads, each once."""
        return tuple(dict.fromkeys(name for names in self.roles.values() for name in names))


def read_steps(tree: Tree, stages: Mapping[str, Stage[Any, Any]], reserved: Sequence[str]) -> list[Step]:
    """Validate the recipe's steps.

    Args:
        tree: the recipe, a mapping; problems are added to it.
        stages: what a step can run, by name.
        reserved: names that no step may have.

    Returns:
        The steps in an order in which each comes after its inputs, as near to the recipe's as possible;
        only those without problems.
    """
    raw = tree.value.get("steps")
    if not isinstance(raw, dict) or not raw:
        tree.problems.append(f"{tree.origin(('steps',))}: steps: expected a mapping of at least one step")
        return []
    reader = _Reader(tree, stages, cast("dict[str, Any]", raw))
    for name in reader.raw:
        if not NAME.fullmatch(name) or name in reserved:
            why = (
                f"is a key of the recipe ({', '.join(reserved)})"
                if name in reserved
                else "needs letters, digits, - or _"
            )
            reader.problem(name, f"the step's name {why}")
    known = {name: stage for name in reader.raw if (stage := reader.stage(name)) is not None}
    steps = [reader.step(name, stage, known) for name, stage in known.items()]
    return _ordered(tree, [step for step in steps if step is not None])


def fully_wired(tree: Tree, steps: Sequence[Step]) -> bool:
    """Whether every step could be read and has all the inputs that it names or needs, so that the graph is known.

    Args:
        tree: the recipe.
        steps: what `read_steps` made of it.
    """
    raw = tree.mapping.get("steps")
    entries = cast("dict[str, dict[str, Any]]", raw) if isinstance(raw, dict) else {}

    def wired(step: Step, role: Role) -> bool:
        value = entries[step.name].get(role.name)
        written = len(cast("list[Any]", value)) if isinstance(value, list) else int(value is not None)
        return len(step.roles.get(role.name, ())) >= max(written, int(role.required))

    pairs = [(step, role) for step in steps for role in roles_of(step.stage).values()]
    return len(steps) == len(entries) and all(wired(step, role) for step, role in pairs)


@dataclass
class _Reader:
    tree: Tree
    stages: Mapping[str, Stage[Any, Any]]
    raw: dict[str, Any]

    def problem(self, name: str, message: str, key: str | None = None) -> None:
        path = ("steps", name) if key is None else ("steps", name, key)
        self.tree.problems.append(f"{self.tree.origin(path)}: {'.'.join(path)}: {message}")

    def stage(self, name: str) -> Stage[Any, Any] | None:
        entry = self.raw[name]
        if not isinstance(entry, dict):
            self.problem(name, f"a step is a mapping with `stage`, got {entry!r}")
        elif "stage" not in entry:
            self.problem(name, f"missing key 'stage'; known stages: {', '.join(sorted(self.stages))}")
        elif (wanted := cast("dict[str, Any]", entry)["stage"]) not in list(self.stages):
            self.problem(name, f"unknown stage {wanted!r}{nearest(str(wanted), self.stages)}", "stage")
        else:
            return self.stages[wanted]
        return None

    def step(self, name: str, stage: Stage[Any, Any], known: Mapping[str, Stage[Any, Any]]) -> Step | None:
        entry, roles = cast("dict[str, Any]", self.raw[name]), roles_of(stage)
        fields = stage.config.model_fields
        for key in entry:
            if key != "stage" and key not in roles and key not in fields:
                self.problem(name, f"unknown key {key!r}{nearest(key, [*roles, *fields, 'stage'])}", key)
        given = {key: value for key, value in entry.items() if key in fields}
        config = validate(stage.config, given, ("steps", name), self.tree)
        filled = {role.name: self.fill(name, role, entry.get(role.name), known) for role in roles.values()}
        if config is None:
            # Its place in the graph still matters: a cycle through it is one more problem to tell.
            config = stage.config.model_construct()
        return Step(name, stage, config, {role: names for role, names in filled.items() if names})

    def fill(self, name: str, role: Role, value: Any, known: Mapping[str, Stage[Any, Any]]) -> tuple[str, ...]:
        if value is None:
            return self.infer(name, role, known) if role.required else ()
        names = cast("list[Any]", value) if isinstance(value, list) else [value]
        fitting = [other for other, stage in known.items() if other != name and role.takes(stage.output)]
        candidates = f"candidates: {', '.join(fitting)}" if fitting else "no step makes one"
        filled: list[str] = []
        for item in names:
            if not isinstance(item, str):
                self.problem(name, f"{role.name} is a step's name or a list of them, got {item!r}", role.name)
            elif item not in self.raw:
                self.problem(name, f"{role.name} names the unknown step {item!r}{nearest(item, self.raw)}", role.name)
            elif item in known and not role.takes(known[item].output):
                made = f"step {item!r} makes {known[item].output.__name__}"
                self.problem(name, f"{role.name} takes {role.describe()}, but {made}; {candidates}", role.name)
            elif item in filled:
                self.problem(name, f"{role.name} names {item!r} twice", role.name)
            else:
                filled.append(item)
        if not names and role.required:
            self.problem(name, f"{role.name} needs at least one step; {candidates}", role.name)
        if len(names) > 1 and not role.many:
            self.problem(name, f"{role.name} takes one step, got {len(names)}", role.name)
        return tuple(filled)

    def infer(self, name: str, role: Role, known: Mapping[str, Stage[Any, Any]]) -> tuple[str, ...]:
        earlier = list(self.raw)[: list(self.raw).index(name)]
        fitting = [other for other in earlier if other in known and role.takes(known[other].output)]
        if len(fitting) == 1:
            return (fitting[0],)
        if fitting:
            self.problem(name, f"{role.name} is ambiguous; name one of the candidates: {', '.join(fitting)}")
        elif all(other in known for other in earlier):  # a step that could not be read may be the one
            self.problem(name, f"{role.name} takes {role.describe()}, and no earlier step makes one")
        return ()


def _ordered(tree: Tree, steps: Sequence[Step]) -> list[Step]:
    waiting, ordered, done = {step.name: step for step in steps}, list[Step](), set[str]()
    while waiting:
        ready = next((step for step in waiting.values() if not (set(step.inputs) & set(waiting))), None)
        if ready is None:
            cycle = _cycle(waiting)
            origin = tree.origin(("steps", cycle[0]))
            tree.problems.append(f"{origin}: steps: a cycle: {' <- '.join([*cycle, cycle[0]])}")
            return ordered
        ordered.append(waiting.pop(ready.name))
        done.add(ready.name)
    return ordered


def _cycle(waiting: Mapping[str, Step]) -> list[str]:
    # Everything that waits reads something that waits, so following inputs must come back somewhere.
    trail = [next(iter(waiting))]
    while True:
        following = next(name for name in waiting[trail[-1]].inputs if name in waiting)
        if following in trail:
            return trail[trail.index(following) :]
        trail.append(following)

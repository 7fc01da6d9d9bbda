"""All trainings in one plot: which ones, in which colours, and how much of them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

from compress.report.document import Curve, Epoch, ReportDocument
from compress.report.figures import arm_figures, curve_figures

Report = Callable[..., ReportDocument]


def curve(step: str, *top1: float, **others: float) -> Curve:
    return Curve(step=step, epochs=[Epoch(epoch=k, values={"validation_top1": v, **others})
                                    for k, v in enumerate(top1, 1)])  # fmt: skip


def drawn(svg: str) -> dict[str, tuple[str, int]]:
    """By the step's name: class of its line, and how many epochs are drawn."""
    found: dict[str, tuple[str, int]] = {}
    for group in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}g"):
        title, line = group[0], group[1]
        found[(title.text or "").partition(":")[0]] = (line.attrib["class"], len(line.attrib["points"].split()))
    return found


def test_a_variant_keeps_its_colour_and_no_two_trainings_look_alike(report: Report) -> None:
    # variants: teacher (reference, v0), float v1, int8 v2, engine v3
    steps = ["student", "teacher", "int8", *(f"arm{k}" for k in range(10))]
    (figure,) = arm_figures(report(curves=[curve(step, 0.5, 0.75) for step in steps]))
    assert figure.title == "Validation top-1"
    found = drawn(figure.svg)
    assert list(found) == steps
    assert found["teacher"][0] == "curve v0"
    assert found["int8"][0] == "curve v2"
    assert len({style for style, _ in found.values()}) == len(steps)
    assert sum("dashed" in style for style, _ in found.values()) == 5


def test_a_beginning_off_the_scale_is_left_out(report: Report) -> None:
    (figure,) = arm_figures(report(curves=[curve("slow", 0.1, 0.5, 0.96, 0.98), curve("fast", 0.5, 0.97, 0.97, 0.97)]))
    assert {step: points for step, (_, points) in drawn(figure.svg).items()} == {"slow": 2, "fast": 3}
    ticks = [float(word) for word in re.findall(r">([\d.]+)</text>", figure.svg)]
    assert min(tick for tick in ticks if tick > 4) >= 95, "the axis shows where they differ, not where they began"


def test_a_quantity_that_one_training_logged_has_no_plot(report: Report) -> None:
    curves = [curve("a", 0.5, loss=1.0, validation_loss=2.0), curve("b", 0.5, validation_loss=1.0), curve("c")]
    figures = arm_figures(report(curves=curves))
    assert [figure.title for figure in figures] == ["Validation top-1", "Validation loss"]
    assert "a ends at 2 nats; b ends at 1 nats" in figures[1].svg
    assert arm_figures(report()) == []


def test_a_training_says_which_epoch_was_kept(report: Report) -> None:
    known = curve("a", 0.5, 0.75, 0.7)
    figures = curve_figures(report(curves=[known.model_copy(update={"kept": 3}), known]))
    assert [figure.note for figure in figures] == ["3 epochs, epoch 3 kept", "3 epochs"]

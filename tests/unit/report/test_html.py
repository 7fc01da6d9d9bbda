from __future__ import annotations

import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from compress.report.document import Confusion, Hop, ReportDocument, report_json
from compress.report.gates import GatesConfig, judge
from compress.report.html import report_html

Report = Callable[..., ReportDocument]
GATES = GatesConfig(top1_drop_pp=3.0, top1_drop_to_float_pp=0.5, latency_ratio=1.0, require=("engine",))


class Page(HTMLParser):
    """What a page is made of: elements with their attributes, and the words outside of style sheets."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._style = False
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words += f"{data} "

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]

    def headings(self) -> list[int]:
        return [int(tag[1]) for tag, _ in self.elements if re.fullmatch("h[1-6]", tag)]


def page(document: ReportDocument) -> Page:
    return Page(report_html(document, judge(GATES, document)))


def anchors(found: Page) -> list[str | None]:
    return [attributes.get("id") for attributes in found.all("section")]


def test_a_full_report_has_every_section_and_its_outcome_first(full_report: Report) -> None:
    found = page(full_report())
    assert anchors(found) == [
        "gates", "limits", "accuracy", "ladder", "trade-off", "latency", "cost", "training", "classes", "confusion",
        "changed", "facts", "lineage", "environment",
    ]  # fmt: skip
    words = " ".join(found.words.split())
    assert "Report of run digits-0042" in words
    assert (
        words.index("Required, but not run here: engine") < words.index("95.96 to 98.79") < words.index("Loss ladder")
    )
    assert "Largest loss: teacher → student, −0.67 pp" in words
    assert "lost" in words
    assert len(found.all("svg")) == 2 + 1 + 2 + 2 + 2 + 3 + 3 + 3 + 2
    assert len(found.all("img")) == 12


def test_what_a_report_does_not_hold_is_left_out_and_said(report: Report) -> None:
    found = page(report())
    assert anchors(found) == [
        "gates", "limits", "accuracy", "ladder", "trade-off", "latency", "cost", "facts", "lineage", "environment",
    ]  # fmt: skip
    words = " ".join(found.words.split())
    assert "engine was not run: no NVIDIA driver." in words
    assert "Not stored in this report: accuracy of the classes, confusion, latency distributions" in words
    assert "Bands" in words
    assert "thin line: to p99" in words


def test_one_training_alone_is_not_held_against_itself(full_report: Report) -> None:
    document = full_report()
    content = report_html(document.model_copy(update={"curves": document.curves[:1]}), [])
    assert 'id="arms-' not in content
    assert 'id="curve-0-title"' in content


def test_a_report_of_which_nothing_ran_has_a_page(report: Report) -> None:
    document = report()
    engine = document.variants[3]
    empty = ReportDocument(
        reference="engine", float_twin=None, split="test", n=1, variants=[engine], ladder=[], environment={}, lineage=[]
    )
    found = Page(report_html(empty, []))
    assert anchors(found) == ["limits", "accuracy", "cost", "facts"]
    assert "The recipe sets no limits" in found.words
    assert document.variants[0].name not in found.words


@pytest.mark.parametrize("kind", ["report", "full_report"])
def test_a_page_is_one_file_without_scripts(kind: str, request: pytest.FixtureRequest) -> None:
    content = report_html(request.getfixturevalue(kind)(), [])
    found = Page(content)
    assert not found.all("script", "iframe", "object", "embed", "form")
    assert [link["href"] for link in found.all("link")] == ["data:,"]
    for attributes in (one for _, one in found.elements):
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "url(" not in content
    assert "@import" not in content
    (policy,) = [one for one in found.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert (policy["content"] or "").startswith("default-src 'none';")


@pytest.mark.parametrize("kind", ["report", "full_report"])
def test_a_page_can_be_read_without_seeing_it(kind: str, request: pytest.FixtureRequest) -> None:
    content = report_html(request.getfixturevalue(kind)(), [])
    found = Page(content)
    levels = found.headings()
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [one["id"] for _, one in found.elements if "id" in one]
    assert len(set(ids)) == len(ids)
    named = {
        one[key] for one in found.all("svg", "section") for key in ("aria-labelledby", "aria-describedby") if key in one
    }
    assert named <= set(ids)
    for attributes in found.all("svg"):
        assert attributes["role"] == "img"
    for drawing in re.findall(r"<svg.*?</svg>", content, re.S):
        root = ElementTree.fromstring(drawing)
        title, description = root[0], root[1]
        assert title.tag.endswith("title")
        assert title.text
        assert description.text
    assert len(found.all("caption")) == len(found.all("table"))
    assert all("scope" in one for one in found.all("th"))
    assert all(one.get("alt") for one in found.all("img"))
    assert {one["href"] for one in found.all("a")} <= {f"#{anchor}" for anchor in ids}


def test_text_from_outside_stays_text(full_report: Report) -> None:
    evil = "<script>alert(1)</script>\"'&"
    document = full_report()
    changed = [one.model_copy(update={"label": evil, "id": evil}) for one in document.variants[2].changed]
    variants = [*document.variants]
    variants[2] = variants[2].model_copy(update={"name": evil, "changed": changed, "facts": {evil: evil}})
    hop = Hop(hop=f"float -> {evil}", top1=0.5, agreement=None, sqnr_db=None)
    document = document.model_copy(
        update={"variants": variants, "ladder": [*document.ladder, hop], "environment": {evil: evil}, "run": evil}
    )
    content = report_html(document, [])
    assert "<script" not in content
    assert "&lt;script&gt;" in content
    assert not Page(content).all("script")


@pytest.mark.parametrize("source", ["https://example.org/1.png", "javascript:alert(1)", "//example.org/1.png"])
def test_a_picture_outside_the_file_is_not_shown(full_report: Report, source: str) -> None:
    document = full_report(pictures={"test/1": source})
    found = Page(report_html(document, []))
    assert not found.all("img")
    assert source not in report_html(document, [])


def test_many_classes_become_a_list_of_the_largest_changes(full_report: Report) -> None:
    document = full_report()
    confusion = [Confusion(label=f"c{k}", predicted=f"c{k + 1}", change=40 - k) for k in range(30)]
    classes = [
        document.variants[2].classes[0].model_copy(update={"name": f"c{k}", "change_pp": k / 10}) for k in range(90)
    ]
    wide = document.variants[2].model_copy(update={"confusion": confusion, "classes": classes})
    document = document.model_copy(update={"variants": [document.variants[0], wide]})
    document = document.model_copy(update={"float_twin": None})
    words = " ".join(page(document).words.split())
    assert "more classes changed than a heat map can show" in words
    assert "c0 c1 +40" in words
    assert "c29 c30" not in words


def test_samples_that_only_rounding_moved_are_not_shown(full_report: Report) -> None:
    document = full_report()
    still = [one.model_copy(update={"kl": 1e-7, "predicted": one.reference}) for one in document.variants[1].changed]
    variants = [*document.variants]
    variants[1] = variants[1].model_copy(update={"changed": still})
    found = page(document.model_copy(update={"variants": variants}))
    assert "No sample moved by 0.0005 nats or more." in found.words
    assert len(found.all("img")) == 6


def test_the_same_report_gives_the_same_bytes(full_report: Report) -> None:
    assert report_html(full_report(), []) == report_html(full_report(), [])


def test_rendering_takes_less_than_three_seconds(full_report: Report) -> None:
    document = full_report()
    started = time.perf_counter()
    report_html(document, judge(GATES, document))
    assert time.perf_counter() - started < 3


def test_rendering_needs_no_array_library(full_report: Report, tmp_path: Any) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(report_json(full_report()))
    code = (
        "import sys; from compress.report.document import report_from_json;"
        "from compress.report.html import report_html;"
        "assert 'jinja2' not in sys.modules; report_html(report_from_json(open(sys.argv[1], 'rb').read()), []);"
        "print(sorted({'numpy', 'scipy', 'torch', 'matplotlib', 'PIL', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")

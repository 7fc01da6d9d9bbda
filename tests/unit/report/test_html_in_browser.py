"""The pages in a real browser: nothing is fetched, nothing overflows, everything can be read, in both themes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.report.comparison import Claim, Comparison
from compress.report.document import ReportDocument
from compress.report.gates import GatesConfig, judge
from compress.report.html import comparison_html, report_html

Report = Callable[..., ReportDocument]
Pages = dict[str, Path]

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here; apt-get install chromium chromium-driver"
    ),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

# The elements that reach over the page's right edge; what lies in a box that scrolls by itself may.
TOO_WIDE = """
const edge = document.documentElement.clientWidth + 0.5;
return [...document.querySelectorAll('body *')]
    .filter(one => one.getBoundingClientRect().right > edge && !one.closest('.table table'))
    .map(one => `${one.tagName} ${one.className.baseVal ?? one.className}: ${one.textContent.slice(0, 40)}`);
"""
# Words whose contrast with what is behind them is below 4.5 (WCAG 2.2, 1.4.3), as `ratio words`.
FAINT = """
const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = color => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = color; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
};
const behind = one => {
    const layers = [];
    for (let at = one; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, over) =>
        under.map((value, k) => value + (over[k] - value) * over[3] / 255), [255, 255, 255]);
};
const light = color => color.slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, k) => sum + value * [0.2126, 0.7152, 0.0722][k], 0);
const found = [];
const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (words.nextNode()) {
    const one = words.currentNode.parentElement;
    if (!words.currentNode.textContent.trim() || !one.getClientRects().length || one.closest('title, desc')) continue;
    const style = getComputedStyle(one);
    const [a, b] = [light(rgba(one.closest('svg') ? style.fill : style.color)), light(behind(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${words.currentNode.textContent.trim()}`);
}
return found;
"""
# Words of figures that are drawn outside of their figure, or smaller than 9 px.
BADLY_DRAWN = """
return [...document.querySelectorAll('svg text')].filter(one => {
    const box = one.getBoundingClientRect(), frame = one.closest('svg').getBoundingClientRect();
    return box.left < frame.left - 4 || box.right > frame.right + 6 || box.bottom > frame.bottom + 3
        || box.top < frame.top - 3 || frame.width / 360 * 11.5 < 9;
}).map(one => one.textContent);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def pages(report: Report, full_report: Report, tmp_path: Path) -> Pages:
    """A page of each kind, and one whose names and reasons are far too long."""
    gates = GatesConfig(top1_drop_pp=3.0, top1_drop_to_float_pp=0.5, latency_ratio=1.0, size_bytes_max=50_000)
    full, little = full_report(), report()
    texts = {
        "full": report_html(full, judge(gates, full)),
        "little": report_html(little, judge(gates, little)),
        "long": report_html(long_names(full), []),
        "comparison": comparison_html(comparison("int8")),
        "long comparison": comparison_html(comparison("a_name_without_any_place_to_break_it" * 3)),
    }
    paths = {name: tmp_path / f"{name}.html" for name in texts}
    for name, path in paths.items():
        path.write_text(texts[name], encoding="utf-8")
    return paths


def long_names(document: ReportDocument) -> ReportDocument:
    """The same report with names that nobody would like to read."""
    names = [variant.name for variant in document.variants]
    text = document.model_dump_json()
    for name in set(names) - {"engine"}:  # which is a kind, too
        text = text.replace(json.dumps(name), json.dumps(f"{name}_{'without_a_space' * 6}"))
    found = ReportDocument.model_validate_json(text)
    variants = [*found.variants]
    variants[3] = variants[3].model_copy(update={"reason": "the driver said " + "no" * 100})
    environment = {"a" * 120: "b" * 240, "words": "c " * 200}
    arms = [
        one.model_copy(update={"step": f"{one.step}_{k}_{'without_a_space' * 6}"})
        for k in range(4)
        for one in found.curves
    ]
    return found.model_copy(
        update={"variants": variants, "environment": environment, "run": "run" * 60, "curves": arms}
    )


def comparison(variant: str) -> Comparison:
    """A comparison with every verdict, and with conditions that differ."""
    side = {"reference": "teacher", "split": "test", "n": 10_000, "environment": {"cpu": "Example CPU", "threads": 2}}
    verdicts = ("faster", "slower", "no difference", "inconclusive")
    claims = [
        Claim(variant=variant, metric="latency", batch=2**k, base=1.0, new=1.0 + k / 20, unit="ms", change=1.0 + k / 20,
              change_unit="ratio", low=0.9 + k / 20, high=1.1 + k / 20, tolerance=0.05, p=0.01, p_holm=0.04,
              verdict=verdict, detail="5 and 5 medians of fresh processes")
        for k, verdict in enumerate(verdicts)
    ]  # fmt: skip
    claims += [
        Claim(variant=variant, metric="top1", base=0.93, new=0.91, unit="fraction", change=-2.0, change_unit="pp",
              low=-2.6, high=-1.4, tolerance=1.0, verdict="worse"),
        Claim(variant=variant, metric="size", base=1e6, new=9e5, unit="bytes", change=0.9, change_unit="ratio",
              tolerance=0.01, verdict="better"),
        Claim(variant=variant, metric="memory", base=1e8, new=None, unit="bytes", change_unit="ratio", tolerance=0.05),
    ]  # fmt: skip
    return Comparison.model_validate(
        {
            "base": {"name": "main", "run": "digits-0001", **side},
            "new": {"name": variant, **side},
            "claims": [claim.model_dump() for claim in claims],
            "mismatches": [{"entry": "libraries.onnxruntime", "base": "1.24", "new": None}],
            "notes": ["engine was not run in either report: no NVIDIA driver."],
            "exit_code": 3,
        }
    )


def show(browser: Any, path: Path, width: int, theme: str) -> None:
    """Open a page as wide and in the theme that is asked for; forget what was logged before."""
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for log in ("performance", "browser"):
        browser.get_log(log)
    browser.get(path.as_uri())


def requested(browser: Any) -> list[str]:
    """What the browser asked for since the page was opened."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_pages_fit_and_can_be_read(browser: Any, pages: Pages, width: int, theme: str) -> None:
    for name, path in pages.items():
        show(browser, path, width, theme)
        assert browser.execute_script("return matchMedia(`(prefers-color-scheme: dark)`).matches") == (theme == "dark")
        root = "document.documentElement"
        assert browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth"), name
        assert browser.execute_script(TOO_WIDE) == [], name
        assert browser.execute_script(BADLY_DRAWN) == [], name
        assert browser.execute_script(FAINT) == [], name


def test_nothing_is_fetched_and_nothing_complains(browser: Any, pages: Pages) -> None:
    for name, path in pages.items():
        show(browser, path, 1600, "light")
        assert browser.execute_script("return document.images.length") == (12 if name in ("full", "long") else 0)
        assert browser.execute_script("return [...document.images].every(one => one.naturalWidth === 8)"), name
        assert {url for url in requested(browser) if not url.startswith("data:")} == {path.as_uri()}, name
        assert browser.get_log("browser") == [], name


def test_a_page_that_fetches_or_overflows_would_be_found(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<body style='background: #fff; color: #ccc'>pale<img src='file:///absent.png'>"
        "<div style='width: 3000px'>wide</div><svg viewBox='0 0 360 20'><text x='340' y='15'>outside</text></svg>"
    )
    show(browser, path, 400, "light")
    assert "file:///absent.png" in requested(browser)
    assert any("wide" in found for found in browser.execute_script(TOO_WIDE))
    assert browser.execute_script(BADLY_DRAWN) == ["outside"]
    assert "1.61 pale" in browser.execute_script(FAINT)
    assert browser.get_log("browser")


def test_a_page_is_printed_in_light_colours(browser: Any, pages: Pages) -> None:
    show(browser, pages["full"], 1600, "dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.execute_script(FAINT) == []
    size = {"width": 700, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    root = "document.documentElement"
    assert browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth + 1"), "a sheet of A4 cuts it off"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})

"""The report's page in headless Chromium: drawn, usable by keyboard, readable, and offline."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_kit import tuned, write_log
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tvmsep.logs import read_log

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "logs" / "x86-zen4" / "mobilenet_v2.jsonl"
TASKS = len({t.code_key for t in read_log(SHIPPED)})
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
PLOTS = ("network", "layers", "roofline", "trials", "wall", "knobs")
LOAD_MS = 30_000
"""Generous: other things run on the machines that test."""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: Debian's package `chromium` has one"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Without its sandbox, which a container's root cannot have; it opens our page alone.
        made = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield made
        made.close()


def report(*words: object) -> None:
    command = [sys.executable, "-m", "tvmsep.cli", "report", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "v2.html"
    report(SHIPPED, "-o", out)
    return out


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten thousand trials, some of which failed with a message that is a script."""
    folder = tmp_path_factory.mktemp("large")
    report(write_log(folder / "large.jsonl", tuned(60, 10_000)), "-o", folder / "large.html")
    return folder / "large.html"


class Opened:
    """A page, with everything that it complained about and asked for."""

    def __init__(self, browser: Browser, url: str, **how: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **how})
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self._console(m.type, m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("dialog", lambda d: self.complaints.append(d.message))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.add_init_script(
            "window.shifted = 0; new PerformanceObserver((l) => { for (const e of l.getEntries())"
            " window.shifted += e.value; }).observe({type: 'layout-shift', buffered: true});"
        )
        self.page.goto(url, timeout=LOAD_MS)
        self.page.wait_for_selector("html[data-drawn=yes]", timeout=LOAD_MS)

    def _console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_from_a_file_and_asks_nobody(
    browser: Browser, shipped: Path, scheme: Any, width: int
) -> None:
    size = {"width": width, "height": 844}
    with Opened(browser, shipped.as_uri(), color_scheme=scheme, viewport=size) as opened:
        page = opened.page
        for name in PLOTS:
            assert page.locator(f"#{name}-plot .main-svg").count() > 0, name
        wide = "() => document.scrollingElement.scrollWidth"
        assert page.evaluate(wide) <= width
        assert page.evaluate("() => window.shifted") < 0.1
        asked = [url for url in opened.asked if not url.startswith(("data:", "blob:"))]
        assert asked == [shipped.as_uri()]
        assert opened.complaints == []
        assert page.evaluate(CONTRAST) == []


CONTRAST = """() => {
  const number = (c) => c.match(/[\\d.]+/g).map(Number);
  const luminance = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (let at = e; at; at = at.parentElement) {
      const c = number(getComputedStyle(at).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const e = node.parentElement;
    if (!node.data.trim() || e.closest('script,style,.plot')) continue;
    if (!e.getClientRects().length) continue;
    const a = luminance(number(getComputedStyle(e).color)), b = luminance(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(node.data.trim().slice(0, 40) + ': ' + ratio.toFixed(2));
  }
  for (const text of document.querySelectorAll('.plot svg text')) {
    const fill = getComputedStyle(text).fill;
    if (!text.textContent.trim() || text.closest('.bars,.heatmaplayer,.hm')) continue;
    const a = luminance(number(fill)), b = luminance(behind(text.closest('.plot')));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push('figure, ' + text.textContent.slice(0, 40) + ': ' + ratio.toFixed(2));
  }
  return low;
}"""


def test_ten_thousand_trials_open_and_stay_text(browser: Browser, failing: Path) -> None:
    assert failing.stat().st_size < 1_500_000
    with Opened(browser, failing.as_uri()) as opened:
        page = opened.page
        assert page.locator("#failures-plot .main-svg").count() > 0
        assert page.title().startswith("large") and opened.complaints == []
        assert "onerror=alert(1)" in page.inner_text("#failures")
        assert page.locator("#failures img").count() == 0


def test_it_has_names_for_everything(browser: Browser, shipped: Path) -> None:
    with Opened(browser, shipped.as_uri()) as opened:
        page = opened.page
        for landmark in ("banner", "navigation", "main", "contentinfo"):
            assert page.get_by_role(landmark).count() == 1, landmark
        heads = page.locator("h1,h2,h3").evaluate_all("es => es.map((e) => Number(e.tagName[1]))")
        assert heads[0] == 1 and heads.count(1) == 1
        assert all(b - a <= 1 for a, b in zip(heads, heads[1:], strict=False))
        unnamed = """es => es.filter((e) => !e.labels || !e.labels.length).map((e) => e.id)"""
        assert page.locator("input,select").evaluate_all(unnamed) == []
        assert page.locator("table:not(:has(caption))").count() == 0
        assert page.locator("figure:not(:has(figcaption))").count() == 0
        # Behind every figure there is a table in the same section.
        assert page.locator("section:has(figure):not(:has(table))").count() == 0
        ids = page.locator("[id]").evaluate_all("es => es.map((e) => e.id)")
        assert len(ids) == len(set(ids))
        for target in page.locator("nav a").evaluate_all("es => es.map((e) => e.hash)"):
            assert page.locator(target).count() == 1
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.className") == "skip"


def column(page: Page, name: str) -> list[float]:
    at = page.locator("#tasks thead th").all_inner_texts()
    index = next(i for i, text in enumerate(at) if text.startswith(name))
    cells = page.locator(f"#tasks tbody tr:not([hidden]) > :nth-child({index + 1})")
    return cells.evaluate_all("es => es.map((e) => Number(e.dataset.v))")


def test_tables_sort_by_keyboard(browser: Browser, shipped: Path) -> None:
    with Opened(browser, shipped.as_uri()) as opened:
        page = opened.page
        head = page.locator("#tasks thead th", has_text="after")
        head.get_by_role("button").focus()
        page.keyboard.press("Enter")
        expect(head).to_have_attribute("aria-sort", "descending")
        times = column(page, "after")
        assert len(times) > 20 and times == sorted(times, reverse=True)
        page.keyboard.press("Space")
        expect(head).to_have_attribute("aria-sort", "ascending")
        assert column(page, "after") == sorted(times)
        assert page.locator("#tasks th[aria-sort]").count() == 1


def test_filters_choose_rows_and_bars(browser: Browser, shipped: Path) -> None:
    with Opened(browser, shipped.as_uri()) as opened:
        page = opened.page
        rows = page.locator("#tasks tbody tr:not([hidden])")
        assert 20 < rows.count() < TASKS  # one thread count is chosen
        page.get_by_label("Threads", exact=True).select_option("")
        expect(rows).to_have_count(TASKS)
        page.get_by_label("Layer contains").fill("dense")
        expect(rows).to_have_count(2)
        expect(page.locator("#filter-count")).to_have_text(f"2 of {TASKS} shown")
        expect(page.locator("#layers-plot .bars path")).to_have_count(4)
        page.get_by_label("Threads", exact=True).select_option("1")
        expect(rows).to_have_count(1)


def test_curves_and_heat_maps_are_chosen(browser: Browser, shipped: Path) -> None:
    with Opened(browser, shipped.as_uri()) as opened:
        page = opened.page
        lines = page.locator("#trials-plot .scatterlayer .trace")
        expect(lines).to_have_count(2)
        page.get_by_label("Best so far of").select_option(index=1)
        expect(lines).to_have_count(1)
        options = page.locator("#knob option").all_inner_texts()
        at = options.index("depthwise, 1 thread")
        page.locator("#knob").select_option(str(at))
        page.get_by_text("Table of this heat map").click()
        expect(page.locator(".knob-table:visible caption")).to_contain_text("depthwise, 1 thread")
        expect(page.locator("#knobs-plot")).to_contain_text("tile_w = 7")


def test_it_prints(browser: Browser, shipped: Path) -> None:
    with Opened(browser, shipped.as_uri(), color_scheme="dark") as opened:
        page = opened.page
        page.emulate_media(media="print")
        assert not page.locator("nav").is_visible()
        background = "() => getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(background) == "rgb(255, 255, 255)"
        assert page.pdf()[:5] == b"%PDF-"


def test_a_served_page_follows_the_log(browser: Browser, tmp_path: Path) -> None:
    log, trials = tmp_path / "net.jsonl", tuned(8, 300)
    command = [sys.executable, "-m", "tvmsep.cli", "report", str(log), "--live", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        said = server.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", said)
        assert found is not None, said + server.stderr.read()
        with Opened(browser, found.group()) as opened:
            page = opened.page
            expect(page.locator("#state")).to_have_text("Waiting for the first trial")
            write_log(log, trials[:200])
            state = page.locator("#state")
            expect(state).to_contain_text("200 trials", timeout=LOAD_MS)
            page.get_by_label("Layer contains").fill("depthwise")
            page.get_by_label("Layer contains").focus()
            write_log(log, trials[200:], "ab")
            with log.open("ab") as file:
                file.write(b'{"workload":{"op"')  # a line that is being written
            expect(state).to_contain_text("300 trials", timeout=LOAD_MS)
            expect(page.locator("#filter-count")).to_have_text("2 of 8 shown")
            assert page.evaluate("() => document.activeElement.id") == "filter-text"
            assert page.locator("#layers-plot .main-svg").count() > 0
            assert opened.complaints == []
            answer = opened.context.request.get(found.group(), headers={"Host": "evil.example"})
            assert answer.status == 403
            server.terminate()
            assert server.wait(timeout=20) == 0
            expect(state).to_contain_text("has ended", timeout=LOAD_MS)
    finally:
        server.kill()
        server.wait(timeout=20)


def test_the_data_of_the_page_is_json(shipped: Path) -> None:
    text = shipped.read_text()
    start = text.index('id="data">') + len('id="data">')
    data = json.loads(text[start : text.index("</script>", start)])
    assert len(data["tasks"]) == TASKS

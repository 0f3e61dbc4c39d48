"""Report pages against what they must reach: size, time to open and to answer, frame rate of the slider, accessibility.

Needs Chromium and playwright; draws in software, as a machine without a GPU does.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from atomdiffuser.config import ReportSettings
from atomdiffuser.stages.report import report
from atomdiffuser.stages.summary import summary
from benchmarks import made_up_series

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--allow-file-access-from-files",
]  # fmt: skip
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
AXE = Path(__file__).parents[1] / "node_modules" / "axe-core" / "axe.min.js"
LOADS = r"""(?:src|href|action|poster)\s*=\s*["'](?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import"""
LIMITS: dict[str, tuple[float, str]] = {
    "series page, 40 frames of 2048² (MB)": (3.0, "most"),
    "session page, 100 series (MB)": (1.0, "most"),
    "series page opens (s)": (2.0, "most"),
    "series page answers a key (s)": (2.0, "most"),
    "session page opens (s)": (2.0, "most"),
    "session page filters (s)": (2.0, "most"),
    "slider at 512² (frames/s)": (30.0, "least"),
    "processor time of a state at 512² (ms)": (1000 / 30, "most"),
    "external URLs": (0.0, "most"),
    "serious axe violations": (0.0, "most"),
}
FRAME_RATE = """(seconds) => new Promise((done) => {
    const slider = document.getElementById('time');
    let frames = 0, began = null;
    const step = (now) => {
        began ??= now;
        const t = (now - began) / 1000;
        if (t >= seconds) { done(frames / t); return; }
        frames += 1;
        slider.value = String(0.5 + 0.5 * Math.sin(1.7 * t + 0.1));
        slider.dispatchEvent(new Event('input'));
        requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
})"""
STATES = "(n) => { for (let i = 0; i < n; i++) AD.setTau(0.31 + (0.6 * i) / n); }"
KEY_S = """() => new Promise((done) => {
    const before = document.getElementById('time-read').textContent, began = performance.now();
    const wait = () => document.getElementById('time-read').textContent === before
        ? requestAnimationFrame(wait) : done((performance.now() - began) / 1000);
    document.getElementById('time').dispatchEvent(new KeyboardEvent('keydown', { key: 'PageDown', bubbles: true }));
    requestAnimationFrame(wait);
})"""
FILTER_S = """() => new Promise((done) => {
    const find = document.getElementById('find'), began = performance.now();
    find.value = 'sample 7';
    find.dispatchEvent(new Event('input'));
    requestAnimationFrame(() => requestAnimationFrame(() => done((performance.now() - began) / 1000)));
})"""
VIOLATIONS = """async () => (await axe.run(document, { resultTypes: ['violations'] })).violations
    .filter((v) => v.impact === 'serious' || v.impact === 'critical')
    .map((v) => `${v.id}: ${v.nodes.map((n) => n.target.join(' ')).slice(0, 3).join('; ')}`)"""


def run() -> pd.DataFrame:
    """Measure both pages; a row a quantity, with its limit and whether it is reached."""
    with tempfile.TemporaryDirectory() as folder:
        series, session = make_pages(Path(folder))
        found: dict[str, Any] = {
            "series page, 40 frames of 2048² (MB)": series.stat().st_size / 1e6,
            "session page, 100 series (MB)": session.stat().st_size / 1e6,
            "external URLs": float(sum(map(external_urls, (series, session)))),
        }
        found |= measure(series, session)
    rows = []
    for name, (limit, sense) in LIMITS.items():
        value = found.get(name, float("nan"))
        reached = value <= limit if sense == "most" else value >= limit
        rows.append({"quantity": name, "value": value, "limit": limit, "at": sense, "reached": reached})
    return pd.DataFrame(rows)


def make_pages(folder: Path) -> tuple[Path, Path]:
    """The page of a series of 40 frames of 2048², and that of a session of 100 series."""
    recipe = made_up_series.Recipe(name="40 frames of 2048²", n_frames=40, shape=(2048, 2048), stride=8, aligned=False)
    big = made_up_series.fabricate(folder / "big", recipe)
    page = big / "report.html"
    report(big, page, big / "status.json", ReportSettings(), series_id="big", name=recipe.name)
    one = made_up_series.fabricate(folder / "one")
    report(one, one / "report.html", one / "status.json", ReportSettings(), series_id="one", name="one")
    entries = []
    for i in range(100):
        (folder / f"s{i}").symlink_to(one, target_is_directory=True)
        name = f"LLZO sample {i}, a rather long name"
        known = dict(sources=("a.dm4",), state="series", reason="", drift_from="")
        entries.append(SimpleNamespace(series_id=f"s{i}", name=name, **known))
    summary(folder, entries, folder / "summary.html", folder / "summary.csv", ReportSettings())
    return page, folder / "summary.html"


def external_urls(page: Path) -> int:
    """Addresses that a page could load something from."""
    text = page.read_text(encoding="utf-8")
    return len(re.findall(LOADS, text))


def measure(series: Path, session: Path) -> dict[str, float]:
    """What only a browser can tell; empty without one."""
    browser = next((p for name in CHROMIUM if (p := shutil.which(name))), None)
    if browser is None:
        print("no Chromium on this machine: pages are not opened")
        return {}
    from playwright.sync_api import sync_playwright

    found: dict[str, float] = {}
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser, args=ARGUMENTS)
        tab = running.new_page(viewport={"width": 1280, "height": 800})
        found["series page opens (s)"] = _opened(tab, series, "#decay-chart svg")
        found["series page answers a key (s)"] = tab.evaluate(KEY_S)
        found["processor time of a state at 512² (ms)"] = state_cpu_ms(tab, 60)
        found["slider at 512² (frames/s)"] = tab.evaluate(FRAME_RATE, 3)
        violations = _violations(tab)
        found["session page opens (s)"] = _opened(tab, session, "#series th button.sort")
        found["session page filters (s)"] = tab.evaluate(FILTER_S)
        violations += _violations(tab)
        if AXE.is_file():
            found["serious axe violations"] = float(len(violations))
        else:
            print("axe-core is not installed: npm install --no-save axe-core")
        running.close()
    for violation in violations:
        print(f"axe: {violation}")
    return found


def state_cpu_ms(tab: Any, n: int) -> float:
    """Processor time of the page's thread for one state of the slider, map and charts together [ms]."""
    devtools = tab.context.new_cdp_session(tab)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
    spent_s = lambda: next(
        m["value"] for m in devtools.send("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration"
    )
    tab.evaluate(STATES, 5)
    before = spent_s()
    tab.evaluate(STATES, n)
    return 1000 * (spent_s() - before) / n


def _opened(tab: Any, page: Path, ready: str) -> float:
    began = time.perf_counter()
    tab.goto(page.as_uri())
    tab.wait_for_selector(ready)
    return time.perf_counter() - began


def _violations(tab: Any) -> list[str]:
    if not AXE.is_file():
        return []
    tab.evaluate(AXE.read_text(encoding="utf-8"))
    return tab.evaluate(VIOLATIONS)

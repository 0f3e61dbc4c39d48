"""Made-up series, each fabricated once per test run, and their pages."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from atomdiffuser.config import ReportSettings
from atomdiffuser.stages.report import report
from atomdiffuser.stages.summary import summary
from benchmarks import made_up_series as fabricate

RECIPES = {
    "good": fabricate.GOOD,
    "bad": fabricate.BAD,
    "no_current": fabricate.NO_CURRENT,
    "nothing_known": fabricate.NOTHING_KNOWN,
    "two": fabricate.TWO,
    "many": fabricate.MANY,
    "no_valid": fabricate.NO_VALID,
    "quiet": fabricate.QUIET,
    "old": fabricate.OLD,
    "hostile": fabricate.Recipe(name=fabricate.HOSTILE_NAME, n_frames=6, shape=(96, 80)),
}
SIZE_OF_2048 = fabricate.Recipe(name="as heavy as 2048²", n_frames=16, shape=(512, 512), stride=6)
"""40 frames of 2048² reach a page as 512² images and 12 states of 86² maps: so do these, with more noise."""


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """A results folder, into which `page` puts series as they are asked for."""
    return tmp_path_factory.mktemp("session") / "results"


@pytest.fixture(scope="session")
def page(results) -> Callable[[str], Path]:
    """Path of a series' page, by the name of its recipe."""

    def make(key: str) -> Path:
        folder = results / key
        output = folder / "report.html"
        if not output.is_file():
            recipe = SIZE_OF_2048 if key == "size_of_2048" else RECIPES[key]
            fabricate.fabricate(folder, recipe)
            report(
                folder, output, folder / "status.json", ReportSettings(),
                series_id=key, name=recipe.name, command=f"atomdiffuser report results/{key}",
            )  # fmt: skip
        return output

    return make


def entry(series_id: str, name: str, state: str = "series", reason: str = "") -> SimpleNamespace:
    """A line of the session's list of series."""
    return SimpleNamespace(
        series_id=series_id, name=name, sources=(f"raw/{name}.dm4",), state=state, reason=reason, drift_from=""
    )


@pytest.fixture(scope="session")
def session(results, page) -> SimpleNamespace:
    """The session page with a few good and bad series, one that failed and one that was skipped."""
    keys = ("good", "bad", "no_current", "two", "no_valid", "quiet", "hostile")
    for key in keys:
        page(key)
    failed = results / "failed"
    failed.mkdir(exist_ok=True)
    shutil.copy(results / "good" / "status.json", failed / "status.json")
    text = (failed / "status.json").read_text(encoding="utf-8")
    text = text.replace('"ok"', '"failed"').replace('"stage": "report"', '"stage": "register"')
    (failed / "status.json").write_text(text.replace('"reason": ""', '"reason": "no pair converged"'), encoding="utf-8")
    entries = [entry(key, RECIPES[key].name) for key in keys]
    entries += [
        entry("failed", "failed series"),
        entry("map", "EDS map", "skipped", "a spectrum image, not a time series"),
    ]
    html, table = results / "summary.html", results / "summary.csv"
    n_failed = summary(results, entries, html, table, ReportSettings())
    return SimpleNamespace(html=html, table=table, n_failed=n_failed, entries=entries)

"""What a run leaves behind, for `--open` and `--json`: its pages, and the state of each series."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path
from typing import Any

import rich_click as click


def finished_page(folder: Path) -> Path | None:
    """The page that is there already: a series' report.html, or the summary of a session or its results folder."""
    for page in (folder / "report.html", folder / "summary.html", folder / "results" / "summary.html"):
        if page.is_file():
            return page
    return None


def open_page(page: Path) -> None:
    """Open a page in the browser, and say where it is: on a machine without one, that is what remains."""
    address = page.absolute().as_uri()
    click.echo(f"Open {address}")
    webbrowser.open(address)


def print_outcome(results: Path, code: int) -> None:
    """Print how a run went as JSON: exit code, summary, and state, reason and page of each series."""
    click.echo(json.dumps({"exit_code": code, **outcome(results)}, indent=1, ensure_ascii=False))


def outcome(results: Path) -> dict[str, Any]:
    """Where the summary is, and how far each series came, from the files that a run wrote."""
    from atomdiffuser.errors import StoreError
    from atomdiffuser.io.status import read_status

    results = results.absolute()
    series = []
    for path in sorted(results.glob("*/status.json")):
        try:
            status = read_status(path)
        except StoreError as error:
            series.append({"series": path.parent.name, "state": "failed", "reason": str(error)})
            continue
        page = path.with_name("report.html")
        facts = {k: getattr(status, k) for k in ("series", "name", "source", "state", "stage", "reason")}
        series.append(facts | {"report": str(page) if page.is_file() else None})
    summary = results / "summary.html"
    return {
        "results": str(results),
        "summary": str(summary) if summary.is_file() else None,
        "summary_table": str(summary.with_suffix(".csv")) if summary.with_suffix(".csv").is_file() else None,
        "series": series,
    }

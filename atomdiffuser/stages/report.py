"""results/<series>/ → report.html."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

from atomdiffuser._version import __version__
from atomdiffuser.config import ReportSettings
from atomdiffuser.io.status import Status, read_status, write_status
from atomdiffuser.report.results import open_results, write_page
from atomdiffuser.report.series_page import series_page


def report(
    results: Path,
    output: Path,
    status: Path,
    settings: ReportSettings,
    *,
    series_id: str,
    name: str,
    command: str | None = None,
) -> None:
    """Write the page of one series, and note in status.json that it got this far.

    Parameters
    ----------
    results
        The folder of the series, results/<series>/.
    output
        The page to write.
    status
        status.json of the series; what earlier stages noted there is kept.
    command
        The command line, for the page's provenance section.

    Raises
    ------
    StoreError
        When a table or store is missing; the message names the stage to run first.
    """
    before = read_status(status) if Path(status).is_file() else Status(series_id, name, "", "ok")
    opened = open_results(Path(results))
    page = series_page(
        opened, settings, series_id=series_id, name=name, status=before, page=Path(output), command=command
    )
    write_page(Path(output), page)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_status(Path(status), replace(before, state="ok", stage="report", reason="", version=__version__, updated=now))

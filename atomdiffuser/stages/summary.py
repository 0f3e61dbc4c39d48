"""Results of all series → summary.html, summary.csv, samples.csv and comparison.csv."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiffuser.config import ReportSettings
from atomdiffuser.errors import AtomDiffuserError, StoreError
from atomdiffuser.io.status import read_status
from atomdiffuser.io.store import read_frames
from atomdiffuser.io.tables import write_table
from atomdiffuser.report.comparison import open_comparison
from atomdiffuser.report.results import write_page
from atomdiffuser.report.session_page import COLUMNS, SessionRow, analysed_row, session_page, session_table
from atomdiffuser.stages.compare import compare

if TYPE_CHECKING:
    from atomdiffuser.io.discovery import SeriesEntry


def summary(results: Path, entries: Sequence[SeriesEntry], html: Path, table: Path, settings: ReportSettings) -> int:
    """Write the page and the tables of a session; samples.csv and comparison.csv go beside `table`.

    Parameters
    ----------
    results
        The session's results folder.
    entries
        Every series of the session, in the order of the table; the skipped ones too.
    html, table
        The page and the CSV to write.

    Returns
    -------
    How many series failed.
    """
    rows = [_row(Path(results), entry, settings) for entry in entries]
    write_table(session_table(rows), Path(table), "summary", columns=COLUMNS)
    compare(Path(results), entries, Path(table).with_name("samples.csv"), Path(table).with_name("comparison.csv"))
    comparison = open_comparison(Path(results))
    page = session_page(rows, settings, page=Path(html), table=Path(table), comparison=comparison)
    write_page(Path(html), page)
    return sum(row.state == "failed" for row in rows)


def _row(results: Path, entry: SeriesEntry, settings: ReportSettings) -> SessionRow:
    source = ", ".join(str(s) for s in list(entry.sources)[:1]) + (" …" if len(entry.sources) > 1 else "")
    if entry.state == "skipped":
        return SessionRow(entry.series_id, entry.name, source, "skipped", reason=entry.reason or "")
    if entry.state == "failed":
        return SessionRow(entry.series_id, entry.name, source, "failed", "convert", entry.reason or "cannot be read")
    folder = results / entry.series_id
    try:
        status = read_status(folder / "status.json")
    except StoreError:
        return SessionRow(entry.series_id, entry.name, source, "failed", reason=entry.reason or "not analysed yet")
    if status.state != "ok":
        return SessionRow(entry.series_id, entry.name, source, status.state, status.stage, status.reason)
    try:
        series = read_frames(folder / "frames.ome.zarr")
        return analysed_row(folder, series, settings, series_id=entry.series_id, name=entry.name, source=source)
    except AtomDiffuserError as error:
        if entry.drift_from and not (folder / "trajectory.parquet").exists():
            reason = f"its drift is that of {entry.drift_from}, which failed"
            return SessionRow(entry.series_id, entry.name, source, "failed", "register", reason)
        return SessionRow(entry.series_id, entry.name, source, "failed", "report", str(error))

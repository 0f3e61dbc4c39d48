"""The end of a run: the summary when not all went well, and the few lines that a user sees."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from atomdiffuser.errors import StoreError
from atomdiffuser.io.status import read_status
from atomdiffuser.workflow.series_list import LIST, LOG
from atomdiffuser.workflow.session import SessionFolders

if TYPE_CHECKING:
    from atomdiffuser.io.discovery import SeriesEntry


def summary_command(folders: SessionFolders, flags: Sequence[str]) -> list[str]:
    """The command by which Snakemake's own Python makes the summary, run in the working folder."""
    results = folders.results
    paths = (results, results / LIST, results / "summary.html", results / "summary.csv")
    relative = (folders.relative(path) for path in paths)
    log = folders.relative(results / LOG)
    return [sys.executable, "-m", "atomdiffuser", "summary", *relative, *flags, "--log", log]


def run_command(folders: SessionFolders) -> str:
    """The command that makes these results again, wherever the package is installed."""
    elsewhere = folders.results != folders.session / "results"
    results = ["--results", str(folders.results)] if elsewhere else []
    return shlex.join(["atomdiffuser", "run", str(folders.session), *results])


def closing_text(folders: SessionFolders, entries: Sequence[SeriesEntry]) -> str:
    """How many series went well, which ones failed and why, and where to read on."""
    skipped = sum(entry.state == "skipped" for entry in entries)
    failures = {}
    analysed = 0
    for entry in entries:
        if entry.state == "skipped":
            continue
        try:
            status = read_status(folders.results / entry.series_id / "status.json")
        except StoreError:
            failures[entry.name] = "not analysed yet"
            continue
        if status.state == "failed":
            failures[entry.name] = f"{status.stage}: {status.reason}"
        else:
            analysed += 1
    lines = ["", f"{analysed} series analysed, {len(failures)} failed, {skipped} skipped"]
    lines += [f"  failed: {name}: {reason}" for name, reason in failures.items()]
    page = folders.results / "summary.html"
    return "\n".join([*lines, f"Summary: {page}" if page.is_file() else "There is no summary yet."])

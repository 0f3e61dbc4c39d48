"""The series of a session, kept beside the results: the jobs of a run read it, only the run itself writes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atomdiffuser.errors import StoreError
from atomdiffuser.io.replacing import replacing_file

if TYPE_CHECKING:
    from atomdiffuser.io.discovery import SeriesEntry

FOLDER = ".atomdiffuser"  # beside the series' folders; no slug begins with a dot
LIST = f"{FOLDER}/series.json"
CACHE = f"{FOLDER}/discovery.json"
LOG = f"{FOLDER}/summary.log"


def write_series_list(path: Path, entries: Sequence[SeriesEntry]) -> None:
    """Write the list, whole or not at all; a list that already says the same keeps its time stamp."""
    text = json.dumps([e.to_json() for e in entries], indent=1, ensure_ascii=False) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    with replacing_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_series_list(path: Path) -> list[SeriesEntry]:
    """Read what `write_series_list` wrote."""
    from atomdiffuser.io.discovery import SeriesEntry

    try:
        return [SeriesEntry.from_json(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path}: not a list of series ({error}); run the workflow on the session first") from error

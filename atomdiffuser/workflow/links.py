"""Links among the results, through which a run would write elsewhere: a session from a stranger may bring some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from atomdiffuser.errors import SettingsError
from atomdiffuser.workflow.series_list import FOLDER
from atomdiffuser.workflow.session import SessionFolders

OWN_LINKS = (".zspy",)
"""Second names of stores, which the stages make; they are replaced and never written through."""


def refuse_links(folders: SessionFolders, series: Iterable[str] = ()) -> None:
    """Raise SettingsError, naming it, for a link where these series, or the run itself, would write.

    The results folder itself may be a link, for example to a larger disk. What is replaced as a whole (stores, tables,
    pages) takes the place of a link; logs, locks and run times are written in place, and so would be what lies in a
    linked folder.
    """
    own = [folders.results / FOLDER, folders.working / ".snakemake", *(folders.results / name for name in series)]
    for folder in own:
        for path in _links(folder):
            raise SettingsError(
                f"results: {path} is a link, through which a file elsewhere would be written; remove it, or choose "
                "another place with --config results=/path/to/results"
            )


def _links(folder: Path) -> Iterator[Path]:
    """The folder, its entries, and those of `logs` and `benchmarks` in it, as far as they are links."""
    if folder.is_symlink():
        yield folder
    elif folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_symlink():
                if path.suffix not in OWN_LINKS:
                    yield path
            elif path.name in ("logs", "benchmarks", "locks", "log") and path.is_dir():
                yield from (p for p in sorted(path.iterdir()) if p.is_symlink())

"""Where the session is, where its results go and from which folder its jobs run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomdiffuser.errors import SettingsError
from atomdiffuser.workflow.config_file import CHECKOUT

NO_SESSION = (
    "Which session? Name the folder with your raw series: snakemake --cores 8 --config session=/path/to/session"
    " (or try `make demo` first)"
)


@dataclass(frozen=True)
class SessionFolders:
    """Absolute folders of one run.

    Jobs run in `working`, so that the paths in their commands are short, and so that locks and Snakemake's records stay
    with the session and move with it.
    """

    session: Path
    results: Path
    working: Path

    def relative(self, path: Path) -> str:
        """A path as jobs see it: relative when it lies inside the working folder, otherwise absolute."""
        path = Path(os.path.normpath(path))
        return path.relative_to(self.working).as_posix() if path.is_relative_to(self.working) else path.as_posix()

    def prefix(self) -> str:
        """What comes before `<series>/…` in the path of every result, as jobs see it."""
        return "" if self.results == self.working else f"{self.relative(self.results)}/"


def session_folders(config: Mapping[str, Any], current: Path, *, directory: str | Path | None = None) -> SessionFolders:
    """Find the folders of a run, and make the results folder.

    Parameters
    ----------
    config
        With `session` and `results`; relative ones start from `current`.
    current
        Where Snakemake was started, or what its --directory says.
    directory
        What --directory says: then jobs run there, and without `session` it is the session.

    Raises
    ------
    SettingsError
        When there is no session, it is not a folder, or results cannot be written.
    """
    if config.get("session") in (None, "") and (directory is None or current.resolve() == CHECKOUT):
        raise SettingsError(NO_SESSION)
    session = _absolute(current, config.get("session") or current)
    if not session.is_dir():
        what = "is a file; give the folder that holds it" if session.exists() else "does not exist"
        raise SettingsError(f"session: {session} {what}")
    default = session / "results"
    results = _absolute(current, config.get("results") or default)
    working = current if directory is not None else session if results == default else results
    for folder in (results, working):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"results: cannot make {folder} ({error.strerror}); {_elsewhere()}") from None
        if not os.access(folder, os.W_OK):
            raise SettingsError(f"results: {folder} cannot be written; {_elsewhere()}")
    folders = SessionFolders(session=session, results=results, working=working)
    if set("{<") & set(folders.prefix()):
        raise SettingsError(f"results: {results} has a brace or angle, which Snakemake expands; leave out --directory")
    return folders


def raw_values(entries: Sequence[str] | None, keys: Sequence[str]) -> dict[str, str]:
    """Values of `--config key=value` as typed: Snakemake reads them as YAML, where `2024` or `run #2` is not a name."""
    pairs = (str(entry).partition("=") for entry in entries or ())
    return {key: value for key, _, value in pairs if key in keys}


def _absolute(current: Path, path: str | Path) -> Path:
    return Path(os.path.normpath(current / os.path.expanduser(path)))


def _elsewhere() -> str:
    return "choose another place with --config results=/path/to/results"

"""One run at a time in one results folder: the second is told so, and what a killed run left locked is set free.

Snakemake locks by files in .snakemake/locks that stay when it is killed; its own cure is to ask the user for --unlock.
Here a run holds a lock of the operating system as well (`io/locks.py`). Who gets that one knows that no other run is
at work, and so that Snakemake's files are left over, if the run that made them was on this machine: not every network
file system shows the locks of one machine to another.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime
from pathlib import Path
from typing import Any

from atomdiffuser.errors import SettingsError
from atomdiffuser.io.locks import LockTaken, take_lock
from atomdiffuser.workflow.series_list import FOLDER
from atomdiffuser.workflow.session import SessionFolders

RECORD = f"{FOLDER}/run.lock"
_held: dict[Path, int] = {}


def claim(folders: SessionFolders) -> None:
    """Make this process the one that works on these results; it stays so until it ends.

    Raises
    ------
    SettingsError
        When another run is at work there, or may be on another machine.
    """
    path = folders.results / RECORD
    if path in _held:
        return
    try:
        descriptor = take_lock(path)
    except LockTaken:
        raise SettingsError(
            f"another run is at work on {folders.results}{_who(_read(path))}; wait until it has ended, or stop it"
        ) from None
    if descriptor is None:
        return  # Snakemake's own lock is all there is here
    _held[path] = descriptor
    before = _read(path)
    left = leftover_locks(folders)
    if left and before:
        if before.get("host") != platform.node():
            raise SettingsError(
                f"a run on another machine has not ended{_who(before)}, as far as can be seen from here; if it has, "
                "free the folder once with --unlock"
            )
        for file in left:
            file.unlink(missing_ok=True)
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    text = json.dumps({"pid": os.getpid(), "host": platform.node(), "started": now}) + "\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def leftover_locks(folders: SessionFolders) -> list[Path]:
    """Snakemake's lock files that name results of this run; another session may share the working folder."""
    prefix = folders.prefix()
    found = sorted((folders.working / ".snakemake" / "locks").glob("*.lock"))
    return [f for f in found if any(line.startswith(prefix) for line in f.read_text(errors="replace").splitlines())]


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _who(record: dict[str, Any]) -> str:
    if not {"pid", "host", "started"} <= record.keys():
        return ""
    return f" (process {record['pid']} on {record['host']}, since {record['started']})"

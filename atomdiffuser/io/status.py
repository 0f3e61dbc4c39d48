"""status.json: how far a series came, and why it stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from atomdiffuser._version import __version__
from atomdiffuser.errors import StoreError
from atomdiffuser.io.replacing import replacing_file

State = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Status:
    """State of one series after its last stage.

    Attributes
    ----------
    series, name, source
        Its ID, its name for display and its raw file, relative to the session.
    stage
        The last stage that ran.
    reason
        Why it failed or was skipped; empty when all went well.
    config_hash, fingerprint
        Of the settings, and of the raw file's contents.
    updated
        ISO 8601 time of writing.
    """

    series: str
    name: str
    source: str
    state: State
    stage: str = ""
    reason: str = ""
    version: str = __version__
    config_hash: str = ""
    fingerprint: str = ""
    updated: str = ""

    def __post_init__(self) -> None:
        if self.state not in get_args(State):
            allowed = ", ".join(get_args(State))
            raise StoreError(f"state of {self.series!r} is {self.state!r}, expected one of {allowed}")


def write_status(path: str | Path, status: Status) -> None:
    """Write status.json; readers see either the old or the new file, never half of one."""
    text = json.dumps(asdict(status), indent=1, ensure_ascii=False) + "\n"
    with replacing_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))  # file names need not be valid Unicode


def read_status(path: str | Path) -> Status:
    """Read status.json. Raises StoreError when it is missing or damaged."""
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Status)}
        return Status(**{k: v for k, v in values.items() if k in known})
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file; run the workflow on this series first") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: not a status file ({error}); run the workflow on this series again") from error

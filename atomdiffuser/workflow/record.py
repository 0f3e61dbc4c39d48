"""status.json while the stages of a series run: what failed stays visible, what is stale is never shown as current."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from atomdiffuser.errors import StoreError
from atomdiffuser.io.locks import holding
from atomdiffuser.io.status import Status, read_status, write_status

INTERRUPTED = "stopped before its report was written: interrupted, killed for lack of memory, or the disk was full"


@dataclass(frozen=True)
class Record:
    """The status file of one series, as one of its stages sees it.

    `name`, `source` and `fingerprint` are known to the first stage, `config_hash` to the last; the others keep what is
    there.
    """

    path: Path
    stage: str
    name: str = ""
    source: str = ""
    fingerprint: str = ""
    config_hash: str = ""

    def begin(self) -> None:
        """From here on the series counts as failed until its report is written, and its old report is gone.

        The recorded failure of another stage stands: that stage has to run again first.
        """
        if self.stage != "report":
            self.path.with_name("report.html").unlink(missing_ok=True)
        with self._alone():
            self._begin()

    def _begin(self) -> None:
        previous = self._previous()
        if previous is not None and self.stage != "convert" and previous.stage != self.stage and _is_failure(previous):
            return
        self._write(INTERRUPTED)

    def fail(self, reason: str) -> None:
        """Record why this stage failed."""
        with self._alone():
            self._write(reason)

    def _alone(self) -> AbstractContextManager[None]:
        """One stage at a time reads the file and writes it anew, lest one that begins hides why another failed."""
        return holding(self.path.parent / "logs" / ".status.lock", lambda: None)

    def _write(self, reason: str) -> None:
        series = self.path.parent.name
        previous = self._previous() or Status(series=series, name="", source="", state="failed")
        write_status(
            self.path,
            Status(
                series=series,
                name=self.name or previous.name or series,
                source=self.source or previous.source,
                state="failed",
                stage=self.stage,
                reason=reason,
                config_hash=self.config_hash or previous.config_hash,
                fingerprint=self.fingerprint or previous.fingerprint,
                updated=datetime.now(UTC).isoformat(timespec="seconds"),
            ),
        )

    def _previous(self) -> Status | None:
        try:
            return read_status(self.path)
        except StoreError:
            return None


def _is_failure(status: Status) -> bool:
    return status.state == "failed" and status.reason != INTERRUPTED

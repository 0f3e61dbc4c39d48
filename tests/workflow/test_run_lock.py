"""One run at a time; what a killed run left locked is set free."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atomdiffuser.errors import SettingsError
from atomdiffuser.io.locks import LockTaken, holding, take_lock
from atomdiffuser.workflow import run_lock
from atomdiffuser.workflow.run_lock import RECORD, claim
from atomdiffuser.workflow.session import SessionFolders, session_folders


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SessionFolders]:
    held: dict[Path, int] = {}
    monkeypatch.setattr(run_lock, "_held", held)
    (tmp_path / "session").mkdir()
    yield session_folders({"session": "session"}, tmp_path)
    for descriptor in held.values():
        os.close(descriptor)


@contextmanager
def another_run(folders: SessionFolders) -> Iterator[subprocess.Popen]:
    """A process that has claimed the results and holds them until it is killed."""
    script = (
        "import sys, time; from pathlib import Path; from atomdiffuser.workflow.run_lock import claim;"
        "from atomdiffuser.workflow.session import session_folders;"
        "claim(session_folders({'session': sys.argv[1]}, Path('/'))); print('claimed', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(folders.session)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "claimed\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def leave_snakemake_locks(folders: SessionFolders, name: str = "results/a/pairs.parquet") -> Path:
    lock = folders.working / ".snakemake" / "locks" / "0.output.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(f"{name}\n")
    return lock


@pytest.mark.fault(
    fault="two runs on one session at once",
    happens="the second ends before it looks at any file; the first goes on",
    user_sees="“another run is at work on …/results (process 4711 on stem-pc, since …); wait until it has ended”",
)
def test_a_second_run_is_told_who_is_at_work(folders: SessionFolders) -> None:
    with another_run(folders) as first:
        lock = leave_snakemake_locks(folders)
        told = rf"another run is at work on .*results \(process {first.pid} on {platform.node()}, since \d"
        with pytest.raises(SettingsError, match=told):
            claim(folders)
        assert lock.exists()


@pytest.mark.fault(
    fault="the run was killed, and Snakemake's lock is still there",
    happens="the lock is known to be left over, because the operating system let go of its own; it is removed",
    user_sees="nothing: the same command goes on where the other stopped",
)
def test_locks_of_a_killed_run_are_set_free(folders: SessionFolders) -> None:
    with another_run(folders) as first:
        lock = leave_snakemake_locks(folders)
        first.send_signal(signal.SIGKILL)
        first.wait()
    claim(folders)
    assert not lock.exists()
    assert json.loads((folders.results / RECORD).read_text())["pid"] == os.getpid()
    claim(folders)  # Snakemake reads the workflow more than once


def test_locks_of_another_machine_are_left_to_the_user(folders: SessionFolders) -> None:
    lock = leave_snakemake_locks(folders)
    record = folders.results / RECORD
    record.parent.mkdir(parents=True)
    record.write_text('{"pid": 1, "host": "elsewhere", "started": "2026-01-01T00:00:00+00:00"}')
    with pytest.raises(SettingsError, match=r"another machine .*process 1 on elsewhere.* free the folder once with"):
        claim(folders)
    assert lock.exists()


def test_locks_that_nobody_recorded_or_that_are_of_other_results_stay(folders: SessionFolders) -> None:
    lock = leave_snakemake_locks(folders)
    claim(folders)
    assert lock.exists(), "there was no record: a run of another version may be at work"
    other = leave_snakemake_locks(folders, "other/a/pairs.parquet")
    assert run_lock.leftover_locks(folders) == []
    assert other.exists()


def test_a_damaged_record_tells_nothing(folders: SessionFolders) -> None:
    record = folders.results / RECORD
    record.parent.mkdir(parents=True)
    for text in ("{", "[]", "\x00", "{}"):
        record.write_text(text)
        assert run_lock._who(run_lock._read(record)) == ""


def test_where_the_file_system_knows_no_locks_snakemakes_own_remains(
    folders: SessionFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unknown)
    lock = leave_snakemake_locks(folders)
    claim(folders)
    assert lock.exists()


@pytest.mark.fault(
    fault="Snakemake was killed, its jobs were not, and the run is started again",
    happens="a job waits until the same one of the first run has ended: each store has one writer at a time",
    user_sees="“decay A: waits for the same job of a run that was stopped”",
)
def test_a_job_waits_for_the_same_job_of_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "logs" / ".decay.lock"
    script = "import sys, time; from atomdiffuser.io.locks import holding; from pathlib import Path\n"
    script += "with holding(Path(sys.argv[1]), print):\n    print('held', flush=True); sys.stdin.read()"
    told: list[float] = []
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(LockTaken):
            take_lock(path)

        def let_go() -> None:
            told.append(time.monotonic())
            first.stdin.close()

        with holding(path, let_go):
            assert first.wait(timeout=30) == 0
    assert len(told) == 1
    with holding(path, lambda: told.append(0.0)):
        pass
    assert len(told) == 1

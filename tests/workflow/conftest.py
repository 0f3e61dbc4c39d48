"""Tiny sessions, analysed once for all tests; each test works on a copy, results and records included."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_sessions import (
    FIRST_FILE,
    IMAGE_FILE,
    NO_MICROSCOPE_FILE,
    SECOND_FILE,
    Run,
    Session,
    write_raw,
)

from atomdiffuser.workflow.config_file import CHECKOUT


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder


@pytest.fixture(scope="session")
def analysed(shared: Path) -> tuple[Path, Run]:
    """The session after its first run; made by whichever test process comes first."""
    folder = shared / "analysed" / "se ssion ü"

    def first_run() -> Run:
        folder.mkdir(parents=True)
        write_raw(folder / FIRST_FILE, seed=1)
        write_raw(folder / SECOND_FILE, seed=2)
        write_raw(folder / IMAGE_FILE, seed=3, n_frames=1)
        return Session(folder).run()

    return folder, once(shared / "analysed.json", first_run)


@pytest.fixture(scope="session")
def damaged(shared: Path, analysed: tuple[Path, Run]) -> tuple[Path, Run]:
    """The session after a second run, for which one raw file was overwritten and another one came."""
    folder = shared / "damaged" / "session"

    def second_run() -> Run:
        shutil.copytree(analysed[0], folder, symlinks=True)
        (folder / SECOND_FILE).write_bytes(NO_MICROSCOPE_FILE)
        write_raw(folder / "third.emd", seed=4)
        return Session(folder).run()

    return folder, once(shared / "damaged.json", second_run)


@pytest.fixture(scope="session")
def demo_session(shared: Path) -> Path:
    """The demonstration session, analysed by the documented command; made by whichever test process comes first."""
    folder = shared / "demo"

    def demo() -> Run:
        command = [sys.executable, "-m", "atomdiffuser", "demo", str(folder)]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        return Run(done.returncode, done.stdout + done.stderr)

    run = once(shared / "demo.json", demo)
    assert run.code == 0, run.said[-2000:]
    return folder / "session"


@pytest.fixture
def session(analysed: tuple[Path, Run], tmp_path: Path) -> Session:
    """A copy of the analysed session, under a name of its own."""
    assert analysed[1].code == 0, analysed[1].said
    return copied(analysed[0], tmp_path)


@pytest.fixture
def failed(damaged: tuple[Path, Run], tmp_path: Path) -> Session:
    """A copy of the damaged session."""
    return copied(damaged[0], tmp_path)


def copied(folder: Path, tmp_path: Path) -> Session:
    copy = tmp_path / "moved it's [2] #ü"
    shutil.copytree(folder, copy, symlinks=True)
    return Session(copy)


def once(record: Path, work: Callable[[], Run]) -> Run:
    """Do the work unless another test process did; returns what it came to."""
    with FileLock(f"{record}.lock"):
        if not record.exists():
            record.write_text(json.dumps(dataclasses.asdict(work())))
    return Run(**json.loads(record.read_text()))

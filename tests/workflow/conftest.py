"""A tiny session, analysed once for all tests; each test works on a copy of it, results and records included."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from tiny_sessions import FIRST_FILE, IMAGE_FILE, SECOND_FILE, Session, write_raw


@pytest.fixture(scope="session")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The session after its first run, and what Snakemake said; made by whichever test process comes first."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    folder, said = shared / "analysed" / "se ssion ü", shared / "analysed" / "said.txt"
    with FileLock(shared / "analysed.lock"):
        if not said.exists():
            folder.mkdir(parents=True)
            write_raw(folder / FIRST_FILE, seed=1)
            write_raw(folder / SECOND_FILE, seed=2)
            write_raw(folder / IMAGE_FILE, seed=3, n_frames=1)
            run = Session(folder).run()
            said.write_text(f"{run.code}\n{run.said}")
    return folder, said.read_text()


@pytest.fixture
def session(analysed: tuple[Path, str], tmp_path: Path) -> Session:
    """A copy of the analysed session, under a name of its own."""
    code, _, said = analysed[1].partition("\n")
    assert code == "0", said
    folder = tmp_path / "moved it's [2] #ü"
    shutil.copytree(analysed[0], folder, symlinks=True)
    return Session(folder)


@pytest.fixture
def damaged_bytes() -> bytes:
    """Something that is no microscope file."""
    return np.random.default_rng(0).bytes(4096)

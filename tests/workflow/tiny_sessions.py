"""Tiny sessions, the documented command on them, and what it did."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atomdiffuser.stages.simulate import simulate
from atomdiffuser.workflow.config_file import CHECKOUT

MESSAGES = {
    "reading the raw file": "convert",
    "measuring the drift": "register",
    "mapping the decay": "decay",
    "fitting damage against fluence": "damage",
    "aligning the frames": "align",
    "writing the report": "report",
}
FIRST, SECOND = "it's #1 {x} é", "second"  # names of two series, one as awkward as names get
FIRST_ID, SECOND_ID = "it-s-1-x-e", "second"
STAGES = tuple(MESSAGES.values())
NO_MICROSCOPE_FILE = bytes(range(256)) * 16
FIRST_FILE, SECOND_FILE, IMAGE_FILE = f"{FIRST}.dm4", f"{SECOND}.emd", "overview.dm4"


@dataclass(frozen=True)
class Run:
    """What one call of Snakemake did."""

    code: int
    said: str

    @property
    def jobs(self) -> set[str]:
        """`stage series` of every job that ended well, and `summary`."""
        return set(re.findall(r"^(\w+(?: [\w-]+)?): done in", self.said, re.MULTILINE))

    @property
    def planned(self) -> set[str]:
        """The same of a dry run: every job that it would run."""
        told = re.findall(r"^Job \d+: (?:([\w-]+): )?(\w+ing .*)$", self.said, re.MULTILINE)
        return {f"{MESSAGES[message]} {series}" if series else "summary" for series, message in told}

    @property
    def did_nothing(self) -> bool:
        return self.code == 0 and "Nothing to be done" in self.said and not self.jobs


@dataclass(frozen=True)
class Session:
    """A session folder."""

    folder: Path

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def run(self, *arguments: str, config: tuple[str, ...] = (), environment: Mapping[str, str] | None = None) -> Run:
        """The documented command, on this session."""
        return snakemake(*arguments, config=(f"session={self.folder}", *config), environment=environment)


def snakemake(*arguments: str, config: tuple[str, ...] = (), environment: Mapping[str, str] | None = None) -> Run:
    """Snakemake from the checkout, as the README says."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    if config:
        command += ["--config", *config]
    result = subprocess.run(
        command, cwd=CHECKOUT, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=600
    )
    return Run(result.returncode, result.stdout + result.stderr)


def jobs_of(series: str, stages: tuple[str, ...] = STAGES) -> set[str]:
    return {f"{stage} {series}" for stage in stages}


def write_raw(path: Path, seed: int, *, n_frames: int = 4) -> None:
    """A simulated series of small, non-square frames."""
    simulate(
        path,
        format="emd" if path.suffix == ".emd" else "dm4",
        n_frames=n_frames,
        shape=(72, 88),
        electrons_per_px=200,
        drift_px_per_frame=0.6,
        random_walk_px=0.1,
        pixel_size_nm=0.03,
        seed=seed,
    )

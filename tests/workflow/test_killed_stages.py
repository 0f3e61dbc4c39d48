"""Each stage killed at exact points: nothing half written stays, and the same command then gives the same results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atomdiffuser.workflow.config_file import CHECKOUT
from benchmarks.kill_stages import SIGNALS, STAGES
from benchmarks.result_files import differences, result_files

POINTS_PER_STAGE = 4


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Attempts on all stages, in a process of its own: one that has run torch cannot be forked."""
    folder = tmp_path_factory.mktemp("kills")
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_stages", str(folder), str(POINTS_PER_STAGE), "0"],
        cwd=CHECKOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.workflow
@pytest.mark.fault(
    fault="SIGKILL, SIGTERM or Ctrl-C while a stage writes",
    happens="what stood there before stays whole; the same command again gives the same results, byte for byte",
    user_sees="“interrupted”, or nothing when killed; the series counts as stopped until its report is written",
)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_while_it_writes_loses_nothing(kills: list[dict], stage: str) -> None:
    here = [k for k in kills if k["stage"] == stage]
    assert len(here) == POINTS_PER_STAGE
    assert [k for k in here if not k["harmless"]] == []


def test_the_kills_are_many_and_hit(kills: list[dict]) -> None:
    assert len(kills) >= 20
    assert all(k["died"] for k in kills)
    assert {k["signal"] for k in kills} == {s.name for s in SIGNALS}
    assert {k["onto"] for k in kills} == {"first run", "replacing"}


def test_a_lost_a_changed_and_a_left_over_file_would_be_seen(tmp_path: Path) -> None:
    for name in ("kept", "lost", "changed"):
        (tmp_path / name).write_text(name)
    (tmp_path / "status.json").write_text('{"state": "ok", "updated": "then"}')
    expected = result_files(tmp_path)
    (tmp_path / "lost").unlink()
    (tmp_path / "changed").write_text("other")
    (tmp_path / ".kept.1.partial").write_text("half")
    (tmp_path / "status.json").write_text('{"state": "ok", "updated": "now"}')
    told = differences(result_files(tmp_path), expected)
    assert told == ["differs: changed", "left over: .kept.1.partial", "missing: lost"]

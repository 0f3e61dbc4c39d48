"""`--use-conda` from end to end with the stand-in of conda_stand_in.py, whose docstring says what that proves."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import conda_stand_in
import pytest
import yaml
from tiny_sessions import SECOND_FILE, SECOND_ID, Session, jobs_of, write_raw

from atomdiffuser.workflow.config_file import CHECKOUT

ENVIRONMENTS = sorted((CHECKOUT / "envs").glob("*.yaml"))

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the stand-in makes Linux packages")


@pytest.mark.workflow
def test_use_conda_makes_environments_once_and_runs_every_stage_in_them(tmp_path: Path) -> None:
    environment = conda_stand_in.write_stand_in(tmp_path / "stand-in", ENVIRONMENTS)
    session = Session(tmp_path / "session")
    session.folder.mkdir()
    write_raw(session.folder / SECOND_FILE, seed=2)
    prefix = tmp_path / "environments"
    arguments = ("--use-conda", "--conda-prefix", str(prefix))

    first = session.run(*arguments, environment=environment)
    assert first.code == 0, first.said
    assert first.jobs == jobs_of(SECOND_ID) | {"summary"}
    assert first.said.count("Creating conda environment") == len(ENVIRONMENTS) == 3
    installed = {record.name.rsplit("-", 2)[0] for record in prefix.glob("*/conda-meta/*.json")}
    assert {"python", "pytorch", "hyperspy", "seaborn"} <= installed

    second = session.run(*arguments, environment=environment)
    assert second.did_nothing
    assert "Creating conda environment" not in second.said


@pytest.mark.parametrize("file", ENVIRONMENTS, ids=lambda file: file.stem)
def test_environments_name_conda_forge_and_bound_every_package(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    assert content["channels"][-1] == "nodefaults"
    assert set(content["channels"][:-1]) <= {"conda-forge", "bioconda"}
    assert all(">=" in line and "<" in line for line in content["dependencies"])


def test_the_stand_in_solves_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in conda_stand_in.write_stand_in(tmp_path, ENVIRONMENTS).items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "wrong.yaml"
    file.write_text("channels: [conda-forge]\ndependencies: ['numpy >=99']\n")
    with pytest.raises(Exception, match="numpy"):
        asyncio.run(conda_stand_in.create_environment(file, tmp_path / "prefix"))

"""What a change makes run again: what depends on it, and nothing else. Further cases are in test_workflow.py."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tiny_sessions import FIRST_FILE, FIRST_ID, SECOND, SECOND_FILE, SECOND_ID, STAGES, Session, jobs_of, snakemake

from atomdiffuser.workflow.config_file import CHECKOUT

pytestmark = pytest.mark.workflow
BOTH = (FIRST_ID, SECOND_ID)


def of_both(*stages: str) -> set[str]:
    return {job for series in BOTH for job in jobs_of(series, stages)} | {"summary"}


@pytest.mark.parametrize(
    ("setting", "stages"),
    [
        ("convert={'compression_level': 2}", STAGES),
        ("register={'lags': [2]}", ("register", "decay", "damage", "align", "report")),
        ("decay={'map_stride': 8}", ("decay", "damage", "report")),
        ("decay={'method': 'regression'}", ("decay", "damage", "report")),
        ("align={'interpolation': 'nearest'}", ("align", "report")),
    ],
)
def test_one_setting(session: Session, setting: str, stages: tuple[str, ...]) -> None:
    run = session.run("--dry-run", config=(setting,))
    assert run.planned == of_both(*stages), run.said


def test_another_weights_file_than_the_shipped_one(session: Session, tmp_path: Path) -> None:
    shipped = CHECKOUT / "atomdiffuser" / "model" / "weights" / "default.safetensors"
    other = tmp_path / "mine.safetensors"
    shutil.copyfile(shipped, other)
    run = session.run("--dry-run", config=(f"decay={{'weights': '{other}'}}",))
    assert run.planned == of_both("decay", "damage", "report"), run.said


def test_a_memory_limit_reaches_the_jobs_and_makes_nothing_again(session: Session) -> None:
    limit = "memory_limit='2 GB'"
    assert session.run("--dry-run", config=(limit,)).planned == set()
    run = session.run("--dry-run", "--printshellcmds", config=(limit, "align={'interpolation': 'nearest'}"))
    assert run.planned == of_both("align", "report"), run.said
    assert "--memory-limit '2 GB' --status" in run.said, run.said
    refused = session.run("--dry-run", config=("memory_limit=much",))
    assert refused.code and "memory_limit: 'much' is not a size" in refused.said


def test_the_address_of_a_cluster_reaches_the_stages_that_hand_work_to_it_and_makes_nothing_again(
    session: Session,
) -> None:
    address = "dask_scheduler=tcp://gpu-node:8786"
    assert session.run("--dry-run", config=(address,)).planned == set()
    run = session.run("--dry-run", "--printshellcmds", config=(address, "register={'lags': [2]}"))
    told = "--dask-scheduler tcp://gpu-node:8786 --status"
    given = [line.partition("-m atomdiffuser ")[2].split()[0] for line in run.said.splitlines() if told in line]
    assert sorted(given) == sorted(["register", "decay"] * len(BOTH)), run.said
    refused = session.run("--dry-run", config=("dask_scheduler=gpu-node",))
    assert refused.code and "dask_scheduler: 'gpu-node' is not an address" in refused.said


def test_a_renamed_file_is_another_series(session: Session) -> None:
    (session.folder / SECOND_FILE).rename(session.folder / "renamed.emd")
    run = session.run("--dry-run")
    assert run.planned == jobs_of("renamed") | {"summary"}, run.said


def test_a_touched_session_file_and_one_that_says_nothing_new_change_nothing(session: Session) -> None:
    (session.folder / "session.yaml").write_text("defaults: {}\n")
    os.utime(session.folder / FIRST_FILE)
    assert session.run("--dry-run").planned == set()


def test_what_session_yaml_says_of_one_series_damage_redoes_that_alone(session: Session) -> None:
    (session.folder / "session.yaml").write_text(f"series:\n  {SECOND}:\n    probe_size_nm: 0.12\n")
    run = session.run("--dry-run")
    assert run.planned == jobs_of(SECOND_ID, ("damage", "report")) | {"summary"}, run.said


class TestCopy:
    """Results on another machine."""

    def test_with_snakemakes_records_keeps_everything(self, session: Session) -> None:
        assert session.run("--dry-run").planned == set()

    def test_without_snakemakes_records_keeps_the_files_but_not_what_they_were_made_with(
        self, session: Session
    ) -> None:
        shutil.rmtree(session.folder / ".snakemake")
        assert session.run("--dry-run").planned == set()
        changed = session.run("--dry-run", config=("align={'extent': 'union'}",))
        assert changed.planned == set(), "Snakemake no longer knows the settings of what it finds"


class TestPackage:
    """A copy of the checkout in which a file was edited."""

    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        copy = tmp_path / "checkout"
        for name in ("atomdiffuser", "workflow", "config", "envs"):
            shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(CHECKOUT / "Snakefile", copy / "Snakefile")
        return copy

    @pytest.mark.parametrize(
        ("edited", "stages"),
        [
            ("training/loop.py", ()),
            ("report/verdict.py", ("report",)),
            ("damage/kinetics.py", ("damage", "report")),
            ("_version.py", STAGES),
        ],
    )
    def test_edited(self, session: Session, checkout: Path, edited: str, stages: tuple[str, ...]) -> None:
        with (checkout / "atomdiffuser" / edited).open("a") as file:
            file.write("\n# edited\n")
        run = snakemake(
            "--dry-run", "--snakefile", str(checkout / "Snakefile"), config=(f"session={session.folder}",),
            environment={"PYTHONPATH": str(checkout)},
        )  # fmt: skip
        assert run.code == 0, run.said
        assert run.planned == (of_both(*stages) if stages else set()), run.said

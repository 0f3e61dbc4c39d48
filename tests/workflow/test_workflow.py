"""The Snakefile on a tiny session: what it makes, what it makes again and when, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tiny_sessions import (
    FIRST,
    FIRST_FILE,
    FIRST_ID,
    IMAGE_FILE,
    NO_MICROSCOPE_FILE,
    SECOND,
    SECOND_FILE,
    SECOND_ID,
    Run,
    Session,
    jobs_of,
    snakemake,
    write_raw,
)

from atomdiffuser.io.status import read_status
from atomdiffuser.workflow.series_list import LIST, read_series_list

pytestmark = pytest.mark.workflow

FILES = (
    "frames.ome.zarr/zarr.json", "frames.zspy", "pairs.parquet", "trajectory.parquet", "decay.zarr/zarr.json",
    "damage.parquet", "damage.csv", "critical_fluence.csv", "columns.csv", "kinetics.parquet", "spots.json",
    "aligned.ome.zarr/zarr.json", "aligned.zspy", "report.html", "status.json",
)  # fmt: skip


def summary_of(session: Session) -> pd.DataFrame:
    return pd.read_csv(session.results / "summary.csv", dtype=str, keep_default_na=False).set_index("series")


class TestFirstRun:
    def test_makes_every_file_of_every_series(self, session: Session) -> None:
        for series in (FIRST_ID, SECOND_ID):
            missing = [name for name in FILES if not (session.results / series / name).exists()]
            assert not missing, f"{series}: {missing}"
            assert read_status(session.results / series / "status.json").state == "ok"

    def test_runs_each_stage_once_and_says_where_the_summary_is(self, analysed: tuple[Path, Run]) -> None:
        folder, run = analysed
        assert run.jobs == jobs_of(FIRST_ID) | jobs_of(SECOND_ID) | {"summary"}
        assert "2 series analysed, 0 failed, 1 skipped" in run.said
        assert f"Summary: {folder}/results/summary.html" in run.said

    def test_writes_no_timestamp_file_into_a_store(self, session: Session) -> None:
        assert not list(session.results.rglob(".snakemake_timestamp"))

    def test_lists_all_series_in_the_summary_the_skipped_one_too(self, session: Session) -> None:
        table = summary_of(session)
        assert dict(table["state"]) == {FIRST_ID: "ok", SECOND_ID: "ok", "overview": "skipped"}
        assert table["name"][FIRST_ID] == FIRST
        page = (session.results / "summary.html").read_text(encoding="utf-8")
        assert f"{FIRST_ID}/report.html" in page
        assert "single image" in page

    def test_records_log_and_benchmark_of_every_job(self, session: Session) -> None:
        for stage in ("convert", "register", "decay", "damage", "align", "report"):
            assert (session.results / SECOND_ID / "logs" / f"{stage}.log").is_file()
            assert (session.results / SECOND_ID / "benchmarks" / f"{stage}.tsv").is_file()

    def test_keeps_its_records_with_the_session(self, session: Session) -> None:
        assert (session.folder / ".snakemake" / "metadata").is_dir()

    def test_status_and_list_of_series_agree(self, session: Session) -> None:
        entries = {e.series_id: e for e in read_series_list(session.results / LIST)}
        for series, source in ((FIRST_ID, FIRST_FILE), (SECOND_ID, SECOND_FILE)):
            status = read_status(session.results / series / "status.json")
            assert (status.source, status.fingerprint) == (source, entries[series].fingerprint)
            assert len(status.config_hash) == 16


class TestRerun:
    def test_of_an_unchanged_session_does_nothing_even_where_it_was_moved(self, session: Session) -> None:
        assert session.run().did_nothing

    def test_with_directory_instead_of_session_does_nothing(self, session: Session) -> None:
        assert snakemake("--directory", str(session.folder)).did_nothing

    def test_after_touching_every_raw_file_does_nothing(self, session: Session) -> None:
        for name in (FIRST_FILE, SECOND_FILE, IMAGE_FILE):
            os.utime(session.folder / name)
        assert session.run().did_nothing

    def test_of_a_replaced_file_with_an_older_time_stamp_redoes_that_series_and_the_summary(
        self, session: Session
    ) -> None:
        write_raw(session.folder / FIRST_FILE, seed=11)
        os.utime(session.folder / FIRST_FILE, (1e9, 1e9))
        assert session.run().jobs == jobs_of(FIRST_ID) | {"summary"}
        assert session.run().did_nothing

    def test_after_an_override_in_session_yaml_redoes_that_series_and_the_summary(self, session: Session) -> None:
        (session.folder / "session.yaml").write_text(f"series:\n  {SECOND}:\n    probe_current_pA: 17\n")
        assert session.run("--dry-run").planned == jobs_of(SECOND_ID) | {"summary"}

    def test_with_another_grid_redoes_damage_and_what_follows(self, session: Session) -> None:
        after = ("damage", "report")
        run = session.run("--dry-run", config=("damage={'grid': [2, 2]}",))
        assert run.planned == jobs_of(FIRST_ID, after) | jobs_of(SECOND_ID, after) | {"summary"}

    def test_with_a_new_file_runs_that_series_and_the_summary(self, session: Session) -> None:
        write_raw(session.folder / "third.emd", seed=4)
        assert session.run("--dry-run").planned == jobs_of("third") | {"summary"}

    def test_without_a_file_that_went_away_redoes_the_summary_alone(self, session: Session) -> None:
        (session.folder / SECOND_FILE).unlink()
        assert session.run().jobs == {"summary"}
        assert SECOND_ID not in summary_of(session).index

    def test_dry_run_lists_jobs_and_why(self, session: Session) -> None:
        run = session.run("--dry-run", config=("align={'extent': 'union'}",))
        assert run.code == 0
        assert f"{SECOND_ID}: aligning the frames" in run.said
        assert "Params have changed" in run.said


class TestFailure:
    def test_stops_its_own_series_only(self, failed: Session, damaged: tuple[Path, Run]) -> None:
        run = damaged[1]
        assert run.code == 1
        assert run.jobs == jobs_of("third") | {"summary"}
        assert read_status(failed.results / FIRST_ID / "status.json").state == "ok"

    def test_is_told_in_one_line_and_counted(self, damaged: tuple[Path, Run]) -> None:
        run = damaged[1]
        assert run.said.count(f"convert {SECOND_ID}: {SECOND_FILE}") == 1
        assert "2 series analysed, 1 failed, 1 skipped" in run.said
        assert "Traceback" not in run.said
        assert "CalledProcessError" not in run.said

    def test_shows_in_status_and_summary_and_takes_the_old_report_away(self, failed: Session) -> None:
        status = read_status(failed.results / SECOND_ID / "status.json")
        assert (status.state, status.stage) == ("failed", "convert")
        assert SECOND_FILE in status.reason
        row = summary_of(failed).loc[SECOND_ID]
        assert (row["state"], row["reason"]) == ("failed", status.reason.replace(f"{SECOND_FILE}:", "convert:"))
        assert not (failed.results / SECOND_ID / "report.html").exists()
        assert f"{SECOND_ID}/report.html" not in (failed.results / "summary.html").read_text(encoding="utf-8")

    def test_is_tried_again_and_mended_by_a_good_file(self, failed: Session) -> None:
        again = failed.run()
        assert (again.code, again.jobs) == (1, {"summary"})
        write_raw(failed.folder / SECOND_FILE, seed=2)
        mended = failed.run()
        assert (mended.code, mended.jobs) == (0, jobs_of(SECOND_ID) | {"summary"})
        assert summary_of(failed)["state"][SECOND_ID] == "ok"
        assert failed.run().did_nothing

    def test_is_forgotten_when_the_file_is_taken_away(self, failed: Session) -> None:
        (failed.folder / SECOND_FILE).unlink()
        run = failed.run()
        assert (run.code, run.jobs) == (0, {"summary"})
        assert SECOND_ID not in summary_of(failed).index

    def test_of_everything_in_a_fresh_session_is_tried_again_too(self, tmp_path: Path) -> None:
        (tmp_path / "broken.dm4").write_bytes(NO_MICROSCOPE_FILE)
        for _ in range(2):
            run = Session(tmp_path).run()
            assert (run.code, run.jobs) == (1, {"summary"})
            assert "0 series analysed, 1 failed, 0 skipped" in run.said


class TestSlips:
    """One clear line before any job, no traceback."""

    @pytest.mark.parametrize(
        ("config", "line"),
        [
            ("sesion=x", "AtomDiffuser: sesion: unknown key; did you mean 'session'?"),
            ("damage={'gird': [2, 2]}", "AtomDiffuser: damage.gird: unknown key; did you mean 'grid'?"),
            ("align={'extent': 'all'}", "AtomDiffuser: align.extent: 'all' is not allowed; expected 'reference' or"),
            ("register={'lags': [0]}", "AtomDiffuser: register.lags.0: 0 is not allowed; expected integer ≥ 1"),
        ],
    )
    def test_in_the_configuration(self, tmp_path: Path, config: str, line: str) -> None:
        self.check(Session(tmp_path).run(config=(config,)), line)

    def test_no_session(self) -> None:
        self.check(snakemake(), "AtomDiffuser: Which session?")

    def test_a_session_that_does_not_exist(self, tmp_path: Path) -> None:
        self.check(Session(tmp_path / "nope").run(), f"AtomDiffuser: session: {tmp_path}/nope does not exist")

    def test_an_empty_session(self, tmp_path: Path) -> None:
        self.check(Session(tmp_path).run(), f"AtomDiffuser: no microscope files in {tmp_path}")

    def test_in_session_yaml(self, session: Session) -> None:
        (session.folder / "session.yaml").write_text("defaults:\n  probe_curent_pA: 30\n")
        run = session.run()
        self.check(run, "AtomDiffuser: ")
        assert "probe_curent_pA: unknown key; did you mean 'probe_current_pA'" in run.said

    def check(self, run: Run, line: str) -> None:
        assert run.code == 1
        assert [text.startswith(line) for text in run.said.splitlines()].count(True) == 1, run.said
        assert "Traceback" not in run.said
        assert not run.jobs


class TestPlaces:
    def test_results_elsewhere_leave_the_session_untouched(self, tmp_path: Path) -> None:
        session = Session(tmp_path / "raw {1}")
        session.folder.mkdir()
        write_raw(session.folder / FIRST_FILE, seed=1)
        before = sorted(session.folder.rglob("*"))
        elsewhere = tmp_path / "else where" / "out"
        run = session.run(config=(f"results={elsewhere}",))
        assert run.code == 0, run.said
        assert (elsewhere / FIRST_ID / "report.html").is_file()
        assert (elsewhere / ".snakemake").is_dir()
        assert sorted(session.folder.rglob("*")) == before
        assert session.run(config=(f"results={elsewhere}",)).did_nothing

    def test_results_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "results").write_text("a file")
        run = Session(tmp_path).run()
        assert run.code == 1
        assert f"AtomDiffuser: results: cannot make {tmp_path}/results" in run.said

    def test_command_of_a_job_can_be_pasted_into_a_terminal(self, session: Session) -> None:
        run = session.run("--dry-run", "--printshellcmds", "--forcerun", "convert")
        commands = re.findall(r"python -m atomdiffuser convert .*", run.said)
        (command,) = [text for text in commands if f"--series-id {FIRST_ID}" in text]
        target = session.results / FIRST_ID / "frames.ome.zarr" / "zarr.json"
        target.unlink()
        python = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run(command, shell=True, cwd=session.folder, env={**os.environ, **python}, check=True)
        assert json.loads(target.read_text())["attributes"]["atomdiffuser"]["name"] == FIRST


def test_rules_pass_the_linter_of_snakemake(session: Session) -> None:
    run = session.run("--lint")
    assert "Congratulations" in run.said, run.said


def test_a_job_that_reads_the_workflow_again_neither_discovers_nor_closes(session: Session) -> None:
    """What the job of a cluster does on its node."""
    before = (session.results / LIST).stat().st_mtime_ns
    write_raw(session.folder / "third.emd", seed=4)
    arguments = ("--mode", "subprocess", "--target-jobs", f"convert:series={SECOND_ID}", "--allowed-rules", "convert")
    run = session.run(*arguments, "--force", "--nolock")
    assert run.jobs == {f"convert {SECOND_ID}"}, run.said
    assert "series analysed" not in run.said
    assert (session.results / LIST).stat().st_mtime_ns == before

"""Where session, results and jobs are."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomdiffuser.errors import SettingsError, StoreError
from atomdiffuser.io.discovery import SeriesEntry
from atomdiffuser.workflow.closing import closing_text, run_command
from atomdiffuser.workflow.config_file import CHECKOUT
from atomdiffuser.workflow.series_list import read_series_list, write_series_list
from atomdiffuser.workflow.session import raw_values, session_folders


def test_jobs_run_in_the_session_and_results_go_below_it(tmp_path: Path) -> None:
    folders = session_folders({"session": "raw"}, _with_folder(tmp_path, "raw"))
    assert (folders.session, folders.results, folders.working) == (
        tmp_path / "raw",
        tmp_path / "raw" / "results",
        tmp_path / "raw",
    )
    assert folders.prefix() == "results/"
    assert folders.relative(tmp_path / "raw" / "a" / ".." / "b.dm4") == "b.dm4"


def test_with_results_elsewhere_jobs_run_there(tmp_path: Path) -> None:
    folders = session_folders({"session": "raw", "results": "out"}, _with_folder(tmp_path, "raw"))
    assert (folders.results, folders.working, folders.prefix()) == (tmp_path / "out", tmp_path / "out", "")
    assert folders.relative(tmp_path / "raw" / "b.dm4") == f"{tmp_path}/raw/b.dm4"


def test_directory_is_the_session_unless_another_is_named(tmp_path: Path) -> None:
    assert session_folders({"session": None}, tmp_path, directory=tmp_path).session == tmp_path
    folders = session_folders({"session": str(_with_folder(tmp_path, "raw") / "raw")}, tmp_path, directory=tmp_path)
    assert (folders.working, folders.prefix()) == (tmp_path, "raw/results/")


@pytest.mark.parametrize("directory", [None, CHECKOUT])
def test_the_checkout_is_never_taken_for_a_session(directory: Path | None) -> None:
    with pytest.raises(SettingsError, match="Which session"):
        session_folders({"session": None}, CHECKOUT, directory=directory)


def test_a_file_is_no_session(tmp_path: Path) -> None:
    (tmp_path / "a.dm4").touch()
    with pytest.raises(SettingsError, match="is a file; give the folder that holds it"):
        session_folders({"session": "a.dm4"}, tmp_path)


def test_a_results_folder_that_snakemake_would_misread_is_refused(tmp_path: Path) -> None:
    (tmp_path / "{raw}").mkdir()
    (tmp_path / "here").mkdir()
    with pytest.raises(SettingsError, match="has a brace"):
        session_folders({"session": str(tmp_path / "{raw}")}, tmp_path / "here", directory=tmp_path / "here")
    assert session_folders({"session": "{raw}"}, tmp_path).prefix() == "results/"


def test_results_that_cannot_be_written_are_told_before_any_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(SettingsError, match=r"cannot be written; choose another place with --config results="):
        session_folders({"session": "."}, tmp_path)


def test_names_on_the_command_line_are_taken_as_typed() -> None:
    typed = ["session=/data/run #2", "results=2024", "damage={'grid': [2, 2]}"]
    assert raw_values(typed, ("session", "results")) == {"session": "/data/run #2", "results": "2024"}
    assert raw_values(None, ("session",)) == {}


def test_list_of_series_comes_back_and_keeps_its_time_stamp_when_nothing_changed(tmp_path: Path) -> None:
    entries = [SeriesEntry("a", "a #1", ("x/1.dm4", "x/2.dm4"), 1, "f00", 10, "series", overrides={"dark_level": 3})]
    path = tmp_path / "sub" / "series.json"
    write_series_list(path, entries)
    assert read_series_list(path) == entries
    stamp = path.stat().st_mtime_ns
    write_series_list(path, entries)
    assert path.stat().st_mtime_ns == stamp
    write_series_list(path, [])
    assert read_series_list(path) == []


def test_a_missing_list_of_series_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="run the workflow on the session first"):
        read_series_list(tmp_path / "series.json")


def test_closing_lines_count_what_never_ran_as_failed(tmp_path: Path) -> None:
    folders = session_folders({"session": "raw"}, _with_folder(tmp_path, "raw"))
    entries = [
        SeriesEntry("a", "a", ("a.dm4",), None, "f", 1, "series"),
        SeriesEntry("b", "b", ("b.dm4",), None, "f", 1, "skipped", "a single image"),
    ]
    text = closing_text(folders, entries)
    assert "0 series analysed, 1 failed, 1 skipped" in text
    assert "failed: a: not analysed yet" in text
    assert "There is no summary yet." in text


def test_command_in_a_report_can_be_typed_as_it_stands(tmp_path: Path) -> None:
    folders = session_folders({"session": "my raw"}, _with_folder(tmp_path, "my raw"))
    assert run_command(folders) == f"atomdiffuser run '{tmp_path}/my raw'"


def _with_folder(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path

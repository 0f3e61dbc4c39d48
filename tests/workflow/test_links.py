"""Links that a session folder brings along where results are written."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_sessions import Session, write_raw

from atomdiffuser.errors import SettingsError
from atomdiffuser.workflow.links import refuse_links
from atomdiffuser.workflow.session import SessionFolders, session_folders


@pytest.fixture
def folders(tmp_path: Path) -> SessionFolders:
    (tmp_path / "session").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("kept")
    return session_folders({"session": "session"}, tmp_path)


PLACES = [
    "results/a", "results/a/logs", "results/a/logs/convert.log", "results/a/logs/.convert.lock", "results/a/benchmarks",
    "results/a/benchmarks/convert.tsv", "results/a/report.html", "results/.atomdiffuser",
    "results/.atomdiffuser/run.lock", ".snakemake", ".snakemake/log",
]  # fmt: skip


@pytest.mark.parametrize("target", ["outside", "outside/secret", "gone"])
@pytest.mark.parametrize("place", PLACES)
def test_a_link_where_a_run_writes_is_named(folders: SessionFolders, place: str, target: str) -> None:
    link = folders.session / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(folders.session.parent / target)
    with pytest.raises(SettingsError, match=rf"^results: {link} is a link, .*; remove it, or choose another place"):
        refuse_links(folders, ["a"])


def test_own_links_other_series_and_results_on_another_disk_are_fine(tmp_path: Path) -> None:
    (tmp_path / "disk" / "a" / "frames.ome.zarr").mkdir(parents=True)
    (tmp_path / "disk" / "a" / "frames.zspy").symlink_to("frames.ome.zarr")
    (tmp_path / "disk" / "mine").symlink_to(tmp_path)
    (tmp_path / "session").mkdir()
    (tmp_path / "session" / "results").symlink_to(tmp_path / "disk")
    refuse_links(session_folders({"session": "session"}, tmp_path), ["a", "not_yet"])


@pytest.mark.workflow
@pytest.mark.fault(
    fault="a session that brings links in its results folder, which lead to other files of the computer",
    happens="told before a job; nothing is written through them",
    user_sees="“results: …/results/a/logs is a link, through which a file elsewhere would be written; remove it, …”",
)
@pytest.mark.parametrize("place", ["results/a", "results/.atomdiffuser/run.lock"])
def test_nothing_is_written_through_a_link(tmp_path: Path, place: str) -> None:
    session, outside = tmp_path / "session", tmp_path / "outside"
    outside.mkdir()
    (outside / "run.lock").write_text("kept")
    session.mkdir()
    write_raw(session / "a.dm4", seed=1)
    link = session / place
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / "run.lock" if place.endswith("lock") else outside)
    run = Session(session).run()
    assert run.code != 0 and f"{link} is a link" in run.said and "Traceback" not in run.said
    assert [p.name for p in outside.iterdir()] == ["run.lock"] and (outside / "run.lock").read_text() == "kept"

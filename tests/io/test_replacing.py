"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atomdiffuser.io import replacing
from atomdiffuser.io.replacing import replacing_file


def test_the_new_file_takes_the_place_of_the_old_one_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.csv"
    for text in ("old", "new"):
        with replacing_file(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["a.csv"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="no room"), replacing_file(path) as temporary:
        temporary.write_text("half")
        raise OSError("no room")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_names_of_any_length_that_the_file_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("µ" * 125 + ".dm4")
    with replacing_file(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_what_a_killed_writer_left_is_cleared_but_not_that_of_a_living_one(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from atomdiffuser.io.replacing import replacing_file\n"
        "with replacing_file(sys.argv[1]) as t:\n    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "a.csv"
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    (dead,) = tmp_path.iterdir()
    number = dead.name.split(".")[-2]
    living = dead.with_name(dead.name.replace(f".{number}.", f".{os.getppid()}-0."))
    living.write_text("being written")
    with replacing_file(path) as temporary:
        temporary.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == sorted(["a.csv", living.name])


def test_what_was_left_long_ago_is_cleared_whoever_has_that_number_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    with replacing_file(path) as temporary:
        temporary.write_text("old")
        living = temporary.with_name(temporary.name.replace(f".{os.getpid()}-", f".{os.getppid()}-"))
    living.write_text("of a number that was given again")
    monkeypatch.setattr(replacing, "LEFT_BEHIND_S", -1.0)
    with replacing_file(path) as temporary:
        temporary.write_text("new")
    assert os.listdir(tmp_path) == ["a.csv"]


def test_what_a_killed_writer_left_on_another_machine_is_cleared_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every container has a name of its own, so that nobody would ever clear it otherwise."""
    path = tmp_path / "a.csv"
    with monkeypatch.context() as patch:
        patch.setattr("platform.node", lambda: "elsewhere")
        with replacing_file(path) as temporary:
            temporary.write_text("old")
            old, fresh = (temporary.with_name(temporary.name.replace("-", f"{k}-")) for k in (1, 2))
    for left in (old, fresh):
        left.write_text("half")
    os.utime(old, (time.time() - 90_000,) * 2)
    with replacing_file(path) as temporary:
        temporary.write_text("new")
    assert sorted(os.listdir(tmp_path)) == sorted(["a.csv", fresh.name])


def test_two_files_whose_long_names_begin_alike_are_written_at_a_time(tmp_path: Path) -> None:
    one, other = (tmp_path / f"{'n' * 60}{k}" for k in (1, 2))
    with replacing_file(one) as first, replacing_file(other) as second:
        first.write_text("one")
        second.write_text("other")
    assert (one.read_text(), other.read_text()) == ("one", "other")

"""Progress: a bar with rate and time left in a terminal, sparse lines in the log of a job."""

from __future__ import annotations

import io
import logging
import sys
import time

import pytest
from rich.console import Console

from atomdiffuser import cli_progress
from atomdiffuser.cli_progress import IN_JOB, bar, progress_of, rate_text, sparse_lines, time_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_shows_count_rate_and_time_left(monkeypatch):
    clock = iter(range(100, 10_000, 2))  # two seconds a frame
    monkeypatch.setattr(cli_progress.time, "monotonic", lambda: float(next(clock)))
    screen = Terminal()
    console = Console(file=screen, force_terminal=True, width=100, force_interactive=True)
    with bar("convert", "convert [a]", console) as progress:
        for done in range(1, 8):
            progress(done, 40)
            time.sleep(0.12)
    shown = screen.getvalue()
    assert "convert [a]" in shown and "7/40" in shown
    assert "2 s per frame" in shown
    assert "0:00:0" in shown and "left" in shown


@pytest.mark.parametrize(("terminal", "job"), [(False, False), (True, True)])
def test_quiet_without_a_terminal_and_in_a_job(monkeypatch, caplog, terminal, job):
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    if job:
        monkeypatch.setenv(IN_JOB, "1")
    with caplog.at_level(logging.INFO, "atomdiffuser"), progress_of("decay", "decay x") as progress:
        for done in range(1, 200):
            progress(done, 200)
    assert stream.getvalue() == "" and caplog.records == [], "what takes no time is not told"


def test_sparse_lines_tell_rate_and_time_left(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(cli_progress.time, "monotonic", lambda: now[0])
    progress = sparse_lines("decay", "decay x", every_s=30)
    with caplog.at_level(logging.INFO, "atomdiffuser"):
        for done in range(1, 101):
            now[0] += 1.0
            progress(done, 100)
    lines = [r.getMessage() for r in caplog.records]
    assert lines[0] == "decay x: 30 of 100 frames, 1 frames/s, 1:10 left"
    assert len(lines) == 4 and lines[-1] == "decay x: 100 of 100 frames, 1 frames/s"


def test_a_resumed_run_tells_its_own_speed(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(cli_progress.time, "monotonic", lambda: now[0])
    progress = sparse_lines("train", "train small", every_s=30)
    with caplog.at_level(logging.INFO, "atomdiffuser"):
        for done in range(1001, 1017):
            now[0] += 2.0
            progress(done, 2000)
    assert caplog.records[0].getMessage() == "train small: 1015 of 2000 steps, 2 s per step, 32:50 left"


def test_texts():
    assert rate_text(0, 3.0, "frames") == "" and rate_text(30, 4.0, "frames") == "7.5 frames/s"
    assert time_text(59.6) == "1:00" and time_text(3723) == "1:02:03"

"""Signals and a full disk: a subcommand ends in order, says one sentence, and lets Snakemake end in order."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from atomdiffuser.cli_run import ending_in_order, logging_to, one_sentence, run_stage
from atomdiffuser.io.replacing import replacing_file

PROGRAM = """
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(0.6)  # longer than Python's own patience with a child after Ctrl-C
    pathlib.Path("ended").write_text(signal.Signals(number).name)
    sys.exit(3)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "to_group", "code"), [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 3)])
def test_snakemake_is_given_the_time_to_end(tmp_path: Path, number: signal.Signals, to_group: bool, code: int) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    script = (
        "import sys; from atomdiffuser.cli_run import _patiently; sys.exit(_patiently([sys.executable, 'program.py']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        (os.killpg if to_group else os.kill)(process.pid, number)
        assert process.wait(timeout=60) == code
    assert (tmp_path / "ended").read_text() == number.name


def test_sigterm_ends_a_stage_like_ctrl_c_and_nothing_half_written_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(progress: object) -> None:
        with replacing_file(tmp_path / "a.csv") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(click.exceptions.Exit):
        run_stage("align", work, threads=1)
    assert capsys.readouterr().err == "align: interrupted\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_that_is_not_the_main_one_leaves_signals_alone() -> None:
    import threading

    seen: list[object] = []

    def work() -> None:
        with ending_in_order():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.fault(
    fault="the disk is so full that not even the status can be written",
    happens="the stage ends with its sentence all the same; the series counts as stopped",
    user_sees="“the disk is full; make room, then run it again”",
)
def test_no_room_for_the_status_is_no_second_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit), one_sentence("decay A", on_failure=full):
        full()
    assert capsys.readouterr().err == "decay A: the disk is full; make room, then run it again\n"


def test_no_room_for_the_log_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_to(tmp_path / "a.log"):
        (handler,) = [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)
                      and h.baseFilename.endswith("a.log")]  # fmt: skip
        monkeypatch.setattr(handler, "flush", full)
        logging.getLogger("atomdiffuser").warning("no room for this")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(logging, "FileHandler", full)
    with logging_to(tmp_path / "b.log"):
        logging.getLogger("atomdiffuser").warning("nor for this")
    assert capsys.readouterr().err == ""

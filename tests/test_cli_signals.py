"""Signals and a full disk: a subcommand ends in order, says one sentence, and lets Snakemake end in order."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from atomdiffuser.cli_run import logging_to, one_sentence, run_stage
from atomdiffuser.interrupts import ENDING, INTERRUPTED, ending_in_order
from atomdiffuser.io.replacing import replacing_file

PROGRAM = """
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(0.6)  # longer than Python's own patience with a child after Ctrl-C
    pathlib.Path("ended").write_text(signal.Signals(number).name)
    sys.exit(3)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
print("ready", flush=True)
time.sleep(60)
"""
PACKAGE = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def program(*arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Python as a shell in a terminal starts it: a process group of its own, which Ctrl-C is for."""
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=PACKAGE,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.mark.parametrize(("number", "to_group", "code"), [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 3)])
def test_snakemake_is_given_the_time_to_end(tmp_path: Path, number: signal.Signals, to_group: bool, code: int) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    script = "import sys; from atomdiffuser.interrupts import run_to_its_end as run; "
    script += "sys.exit(run([sys.executable, 'program.py']))"
    with program("-c", script, cwd=tmp_path) as process:
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


@pytest.fixture
def listens_to_ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal: what a shell starts in the background does not get to hear of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_does_not_disturb_the_end_that_the_first_began(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], listens_to_ctrl_c: None
) -> None:
    ended: list[str] = []

    def work(progress: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(number)
                ended.append(number.name)

    with pytest.raises(click.exceptions.Exit):
        run_stage("align", work, threads=1)
    assert capsys.readouterr().err == "align: interrupted\n" and ended == ["SIGINT", "SIGTERM"]


def test_the_second_ctrl_c_is_answered_and_the_third_leaves() -> None:
    script = """
import time
from atomdiffuser.interrupts import end_run_in_order
end_run_in_order()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("ends", flush=True)
time.sleep(60)
"""
    with program("-c", script) as process:
        for answer in ("ready\n", "ends\n", "\n"):
            assert process.stdout.readline() == answer
            os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
    assert rest == f"{ENDING}\n{INTERRUPTED}\n".lstrip("\n")
    assert process.returncode == -signal.SIGINT


def test_a_program_that_is_only_starting_takes_ctrl_c_when_it_is_ready() -> None:
    script = """
import subprocess, sys
from atomdiffuser.interrupts import interrupts_held
child = "import os, signal; from atomdiffuser.interrupts import take_interrupts as take"
child += "; os.kill(os.getpid(), signal.SIGINT); print('starts', flush=True); take(); print('never')"
with interrupts_held():
    process = subprocess.Popen([sys.executable, "-c", child], stderr=subprocess.DEVNULL)
print(process.wait(), flush=True)
"""
    with program("-c", script) as process:
        assert process.communicate(timeout=60)[0] == f"starts\n{-signal.SIGINT}\n"


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.04, 0.08, 0.16, 0.32])
def test_ctrl_c_while_a_job_starts_shows_nothing(after_s: float) -> None:
    """As the workflow starts its jobs; without `env` the first of these fall into the start of Python itself."""
    shell = "env --block-signal=INT true 2>/dev/null || exit 77; echo starts; "
    shell += f"exec env --block-signal=INT {sys.executable} -m atomdiffuser convert nothing.dm4 frames"
    with subprocess.Popen(
        ["sh", "-c", shell], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), env=PACKAGE,
    ) as process:  # fmt: skip
        if not process.stdout.readline():
            pytest.skip("env of GNU coreutils is needed to hold back a signal")
        time.sleep(after_s)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    assert "Traceback" not in said and "Fatal" not in said
    assert process.returncode in (1, 130, -signal.SIGINT)


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

"""Whole runs that are killed, have no room, no network or nothing they may write: nothing is lost, nothing let in."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_sessions import FIRST_FILE, FIRST_ID, Run, write_raw

from atomdiffuser.interrupts import INTERRUPTED
from atomdiffuser.io.tables import read_table
from atomdiffuser.workflow.config_file import CHECKOUT
from benchmarks.result_files import differences, result_files

pytestmark = pytest.mark.workflow
FITTED = (
    "columns.parquet", "critical_fluence.parquet", "kinetics.parquet", "spot_fluence.parquet",
    "damage.parquet column_msd_px2",  # from the places of columns, as in tests/estimation/test_same_numbers.py
)  # fmt: skip
RUN = [sys.executable, "-m", "atomdiffuser", "run", "--cores", "2"]


def start(session: Path) -> subprocess.Popen:
    """The run as a process group of its own, as in a terminal."""
    return subprocess.Popen(
        [*RUN, str(session)], cwd=CHECKOUT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen, *, limit_s: float = 300.0) -> None:
    until = time.monotonic() + limit_s
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.02)


def same_as_undisturbed(series: Path, analysed: tuple[Path, Run]) -> list[str]:
    """Differences of a series' results from those of the session that nobody disturbed."""
    return differences(result_files(series), result_files(analysed[0] / "results" / FIRST_ID))


@pytest.mark.fault(
    fault="the whole run killed (SIGKILL), interrupted (Ctrl-C) and terminated (SIGTERM), one after the other",
    happens="each time the same command goes on where it stopped; the results are those of an undisturbed run",
    user_sees="what was finished is not done again; no lock to remove by hand",
)
def test_a_run_stopped_three_times_ends_as_if_nothing_had_been(analysed: tuple[Path, Run], tmp_path: Path) -> None:
    session = tmp_path / analysed[0].name
    session.mkdir()
    write_raw(session / FIRST_FILE, seed=1)
    series = session / "results" / FIRST_ID
    stops = (
        ("frames.ome.zarr/zarr.json", signal.SIGKILL), ("trajectory.parquet", signal.SIGINT),
        ("decay.zarr/zarr.json", signal.SIGTERM),
    )  # fmt: skip
    for name, number in stops:
        process = start(session)
        wait_for(series / name, process)
        if number == signal.SIGKILL:  # of the run and of Snakemake; their jobs go on without them
            children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
            for pid in (process.pid, *map(int, children)):
                os.kill(pid, number)
        else:
            os.killpg(process.pid, number)
        said = process.communicate(timeout=300)[0]
        assert process.returncode != 0, said
    last = subprocess.run([*RUN, str(session)], cwd=CHECKOUT, capture_output=True, text=True, timeout=600)
    assert last.returncode == 0, last.stderr
    assert "convert" not in last.stderr.replace("converted", "")
    assert "--unlock" not in last.stderr
    assert same_as_undisturbed(series, analysed) == []


def test_a_second_run_at_the_same_time_ends_at_once_and_the_first_goes_on(tmp_path: Path) -> None:
    """The whole command; its parts are in test_run_lock.py."""
    session = tmp_path / "session"
    session.mkdir()
    write_raw(session / FIRST_FILE, seed=1)
    first = start(session)
    wait_for(session / "results" / FIRST_ID / "status.json", first)
    second = subprocess.run([*RUN, str(session)], cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert second.returncode == 1 and "Traceback" not in second.stderr
    assert f"AtomDiffuser: another run is at work on {session}/results (process " in second.stderr
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGTERM)
    first.communicate(timeout=300)


def test_the_number_of_cores_changes_no_number(analysed: tuple[Path, Run], tmp_path: Path) -> None:
    """With four cores each job takes two threads, with two it takes one.

    Fits divide the rounding of a loss by that loss, and atomic columns are placed along a gradient: they get ten times
    the millionth of the others, and an end of an interval a ten-thousandth of its width, which nobody can read. Curves
    with more parameters than the frames can fix (no Akaike weight) say nothing.
    """
    session = tmp_path / analysed[0].name
    session.mkdir()
    write_raw(session / FIRST_FILE, seed=1)
    command = [*RUN, str(session)]
    command[command.index("--cores") + 1] = "4"
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found, expected = session / "results" / FIRST_ID, analysed[0] / "results" / FIRST_ID
    tables = sorted(p.name for p in expected.glob("*.parquet"))
    assert len(tables) >= 8 and tables == sorted(p.name for p in found.glob("*.parquet"))
    for name in tables:
        one, other = read_table(expected / name), read_table(found / name)
        assert list(one) == list(other) and len(one) == len(other)
        if name == "kinetics.parquet":
            assert (np.isfinite(one["aicc"]) == np.isfinite(other["aicc"])).all()
            one, other = (t[np.isfinite(t["aicc"])] for t in (one, other))
            assert len(one) > 10
        for column in one.select_dtypes("number"):
            values = one[column].to_numpy(float)
            rtol = 1e-5 if f"{name} {column}".startswith(FITTED) else 1e-6
            atol = rtol * np.abs(values[np.isfinite(values)]).max(initial=1.0)
            if name.startswith(FITTED) and column.endswith(("_lo95", "_hi95")):
                low, high = (one[column[:-5] + end].to_numpy(float) for end in ("_lo95", "_hi95"))
                bounded = np.isfinite(low) & np.isfinite(high)
                width = np.where(bounded, high, 0.0) - np.where(bounded, low, 0.0)
                atol = np.maximum(atol, 1e-4 * width)
            off = np.abs(np.nan_to_num(other[column].to_numpy(float)) - np.nan_to_num(values))
            assert (np.isfinite(other[column]) == np.isfinite(values)).all(), f"{name} {column}"
            assert (off <= atol + rtol * np.abs(np.nan_to_num(values))).all(), f"{name} {column}: {off.max()}"


@pytest.mark.fault(
    fault="Ctrl-C twice, or while the run is only starting",
    happens="the first ends the run in order, the second disturbs nothing, a third leaves at once",
    user_sees="“AtomDiffuser: ending already, which takes some seconds; …”, and never a traceback",
)
@pytest.mark.parametrize("moment", ["starting", "looking", "working"])
def test_ctrl_c_at_any_moment_shows_a_sentence(tmp_path: Path, moment: str) -> None:
    session = tmp_path / "session"
    session.mkdir()
    write_raw(session / FIRST_FILE, seed=1)
    process = start(session)
    if moment == "working":
        wait_for(session / "results" / FIRST_ID / "status.json", process)
    else:
        line = ""
        while {"starting": "Using", "looking": "First look"}[moment] not in line:
            line = process.stdout.readline()
            assert line, "the run ended early"
    os.killpg(process.pid, signal.SIGINT)
    if moment == "working":
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 130 and "Traceback" not in said, said
    if moment == "working":
        assert "ending already" in said and (session / "results" / "summary.html").is_file()
    else:
        assert said.splitlines()[-1] == INTERRUPTED


# --- a namespace of its own -----------------------------------------------------------------------


def in_namespace(script: str, *, network: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount, and has no network if so wanted; skips where the system does not allow it."""
    flags = "-m" + ("" if os.geteuid() == 0 else "r") + ("" if network else "n")
    if shutil.which("unshare") is None:
        pytest.skip("unshare (util-linux) is needed to mount a small disk")
    probe = subprocess.run(["unshare", flags, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"mounting is not allowed here: {probe.stderr.strip()}")
    return subprocess.run(
        ["unshare", flags, "sh", "-euc", script], cwd=CHECKOUT, env={**os.environ, **variables}, capture_output=True,
        text=True, timeout=900,
    )  # fmt: skip


@pytest.mark.fault(
    fault="the disk is full",
    happens="the series stops with its partial files removed; what was finished stays; with room again the run goes on",
    user_sees="“register A: the disk is full; make room, then run it again”",
)
def test_a_full_disk_stops_the_series_and_room_lets_it_go_on(analysed: tuple[Path, Run], tmp_path: Path) -> None:
    disk, kept = tmp_path / "disk", tmp_path / analysed[0].name
    disk.mkdir()
    write_raw(tmp_path / FIRST_FILE, seed=1)
    session = disk / analysed[0].name
    run = shlex.join([*RUN, str(session)])
    done = in_namespace(
        f"""
        mount -t tmpfs -o size=8m tmpfs "$DISK"
        mkdir "$SESSION"; cp "$RAW" "$SESSION"
        # room for the frames, not for what comes after
        head -c $(( ($(df --output=avail -k "$DISK" | tail -1) - 150) * 1024 )) /dev/zero > "$DISK/filler"
        if {run} > "$LOG" 2>&1; then echo a run succeeded without room; exit 3; fi
        find "$SESSION/results" -name '*.partial' -o -name '.*.old'
        ls "$SESSION/results/{FIRST_ID}" > "$LOG.files"
        rm "$DISK/filler"
        {run} > "$LOG.again" 2>&1
        cp -a "$SESSION" "$KEPT"
        """,
        DISK=str(disk), SESSION=str(session), RAW=str(tmp_path / FIRST_FILE), LOG=str(tmp_path / "log"), KEPT=str(kept),
    )  # fmt: skip
    said = (tmp_path / "log").read_text()
    assert (done.returncode, done.stdout) == (0, ""), f"{done.stdout}{done.stderr}{said}"
    assert f"register {FIRST_ID}: the disk is full" in said
    assert "Traceback" not in said
    assert "frames.ome.zarr" in (tmp_path / "log.files").read_text()
    assert "convert" not in (tmp_path / "log.again").read_text()
    assert same_as_undisturbed(kept / "results" / FIRST_ID, analysed) == []


def test_a_disk_that_is_full_from_the_start_is_told_in_one_sentence(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    write_raw(tmp_path / "a.dm4", seed=1)
    done = in_namespace(
        f"""
        mount -t tmpfs -o size=2m tmpfs "$DISK"
        mkdir -p "$DISK/session/results"; cp "$RAW" "$DISK/session"
        cat /dev/zero > "$DISK/filler" 2>/dev/null || true
        {shlex.join([*RUN, str(disk / "session")])} > "$LOG" 2>&1 || echo "exit $?"
        """,
        DISK=str(disk), RAW=str(tmp_path / "a.dm4"), LOG=str(tmp_path / "log"),
    )  # fmt: skip
    said = (tmp_path / "log").read_text()
    assert done.stdout == "exit 1\n", f"{done.stdout}{done.stderr}{said}"
    assert "AtomDiffuser: the disk is full" in said and "Traceback" not in said, said


@pytest.mark.fault(
    fault="the session and everything else is read-only, there is no network, results lie elsewhere",
    happens="the run ends well: it writes below the results, the home folder and the temporary folder only",
    user_sees="nothing",
)
def test_nothing_but_the_results_is_written_and_no_network_is_used(analysed: tuple[Path, Run], tmp_path: Path) -> None:
    session, results = tmp_path / analysed[0].name, tmp_path / "results"
    for folder in (session, results, tmp_path / "home", tmp_path / "tmp"):
        folder.mkdir()
    write_raw(session / FIRST_FILE, seed=1)
    run = shlex.join([*RUN, "--results", str(results), str(session)])
    log = tmp_path / "home" / "log"
    done = in_namespace(
        f"""
        for folder in results home tmp; do mount --bind "$ROOT/$folder" "$ROOT/$folder"; done
        mount --bind / /mnt; mount -o remount,bind,ro /mnt
        for folder in results home tmp; do mount --bind "$ROOT/$folder" "/mnt$ROOT/$folder"; done
        mount --bind /dev /mnt/dev; mount -t proc proc /mnt/proc || mount --bind /proc /mnt/proc
        if touch "/mnt$SESSION/no" 2>/dev/null; then echo the session can be written; exit 3; fi
        cd "/mnt{CHECKOUT}"
        chroot /mnt sh -c 'cd "$0"; exec "$@"' "{CHECKOUT}" {run} > "{log}" 2>&1
        """,
        network=False, ROOT=str(tmp_path), SESSION=str(session), HOME=str(tmp_path / "home"),
        TMPDIR=str(tmp_path / "tmp"), PYTHONDONTWRITEBYTECODE="1", XDG_CACHE_HOME=str(tmp_path / "home" / "cache"),
    )  # fmt: skip
    said = log.read_text() if log.exists() else ""
    assert (done.returncode, done.stdout) == (0, ""), f"{done.stdout}{done.stderr}{said}"
    assert sorted(p.name for p in session.iterdir()) == [FIRST_FILE]
    tables = {k: v for k, v in result_files(results / FIRST_ID).items() if k.endswith((".parquet", ".csv"))}
    undisturbed = result_files(analysed[0] / "results" / FIRST_ID)
    assert tables == {k: undisturbed[k] for k in tables} and len(tables) >= 9
    home = {p.relative_to(tmp_path / "home").parts[0] for p in (tmp_path / "home").rglob("*")}
    assert home <= {"log", "cache", ".cache", ".config", ".hyperspy"}

"""Jobs whose work the warm process of their run does: the same results, messages and ends as without it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tiny_sessions import write_raw

from atomdiffuser.io.locks import take_lock
from atomdiffuser.io.status import read_status
from atomdiffuser.workflow import warm_job
from atomdiffuser.workflow.config_file import CHECKOUT
from atomdiffuser.workflow.warm_process import start_warm_process
from benchmarks.result_files import differences, result_files

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is a warm process on Linux only"),
]
RUN = [sys.executable, "-m", "atomdiffuser", "run", "--cores", "2"]
STAGES = {
    "convert": ["raw.dm4", "{}/frames.ome.zarr", "--series-id", "a", "--name", "a"],
    "register": ["{}/frames.ome.zarr", "{}/pairs.parquet", "{}/trajectory.parquet"],
    "decay": ["{}/frames.ome.zarr", "{}/trajectory.parquet", "{}/decay.zarr"],
    "damage": [
        "{}/frames.ome.zarr", "{}/trajectory.parquet", "{}/decay.zarr", "{}/damage.parquet", "{}/critical_fluence.csv",
    ],
    "align": ["{}/frames.ome.zarr", "{}/trajectory.parquet", "{}/aligned.ome.zarr"],
    "report": ["{}", "{}/report.html", "--name", "a"],
}  # fmt: skip


@pytest.fixture
def warm() -> Iterator[str]:
    """The address of a warm process."""
    before = psutil.Process().children()
    address = start_warm_process(str(CHECKOUT))
    yield address
    for process in set(psutil.Process().children()) - set(before):
        process.kill()
        process.wait()


@pytest.fixture
def server(warm: str) -> psutil.Process:
    """The warm process itself."""
    (found,) = filter(is_warm, psutil.Process().children())
    return found


def is_warm(process: psutil.Process) -> bool:
    try:
        return "atomdiffuser.workflow.warm_process" in process.cmdline()
    except psutil.NoSuchProcess:  # it has just ended
        return False


def start(stage: str, *arguments: str, cwd: Path, address: str = "", threads: int = 1) -> subprocess.Popen[str]:
    """A job as the workflow starts it, in a process group of its own; it tells on stderr what it imports itself."""
    command = [sys.executable, "-X", "importtime", "-m", "atomdiffuser", stage, *arguments, "--threads", str(threads)]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, warm_job.ADDRESS: address, "PYTHONPATH": str(CHECKOUT), "ATOMDIFFUSER_JOB": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str, bool]:
    """Exit code, what was said, and whether the job did the work itself."""
    lines = process.communicate(timeout=300)[1].splitlines(keepends=True)
    said = "".join(line for line in lines if not line.startswith("import time:"))
    return process.returncode, said, any(re.search(r"\| +numpy$", line.rstrip()) for line in lines)


def analyse(folder: Path, name: str, address: str) -> set[bool]:
    """Every stage of a series; whether its jobs did the work themselves."""
    found = set()
    for stage, arguments in STAGES.items():
        given = [a.format(name) for a in arguments]
        status, log = f"{name}/status.json", f"{name}/logs/{stage}.log"
        code, said, itself = end(start(stage, *given, "--status", status, "--log", log, cwd=folder, address=address))
        assert code == 0 and re.fullmatch(rf"{stage} [ab]: done in [\d.]+ s\n", said), said
        found.add(itself)
    return found


@pytest.mark.slow
def test_results_are_those_of_jobs_that_do_their_work_themselves(tmp_path: Path, warm: str) -> None:
    write_raw(tmp_path / "raw.dm4", seed=1)
    assert analyse(tmp_path, "a", warm) == {False}
    first = result_files(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "kept")
    assert analyse(tmp_path, "a", warm_job.OFF) == {True}
    assert len(first) > 100 and differences(first, result_files(tmp_path / "a")) == []


def test_a_failure_is_told_and_recorded_alike(tmp_path: Path, warm: str) -> None:
    (tmp_path / "raw.dm4").write_bytes(bytes(range(256)) * 16)
    arguments = [a.format("a") for a in STAGES["convert"]]
    told = []
    for address in (warm, warm_job.OFF):
        job = start("convert", *arguments, "--status", "a/status.json", "--log", "a/log", cwd=tmp_path, address=address)
        code, said, itself = end(job)
        status = json.loads((tmp_path / "a" / "status.json").read_text())
        log = re.sub(r"^\S+ \S+ ", "", (tmp_path / "a" / "log").read_text())  # its moment
        told.append((code, said, {k: v for k, v in status.items() if k != "updated"}, log))
        assert itself is (address == warm_job.OFF)
        shutil.rmtree(tmp_path / "a")
    assert told[0] == told[1]
    code, said, status, log = told[0]
    assert code == 1 and said.startswith("convert a: ") and status["reason"] in said and "Traceback" in log


@pytest.fixture
def waiting(tmp_path: Path, warm: str) -> Iterator[tuple[subprocess.Popen[str], Callable[[], None]]]:
    """A job at work, which waits for another job of the same stage; and what lets it go on."""
    write_raw(tmp_path / "raw.dm4", seed=1)
    lock = [take_lock(tmp_path / "a" / "logs" / ".convert.lock")]
    arguments = [a.format("a") for a in STAGES["convert"]]
    job = start("convert", *arguments, "--status", "a/status.json", cwd=tmp_path, address=warm)
    until_it_waits(job)
    yield job, lambda: os.close(lock.pop())
    for descriptor in lock:
        os.close(descriptor)
    if job.poll() is None:
        job.kill()
    job.communicate()


def until_it_waits(job: subprocess.Popen[str]) -> None:
    assert job.stderr is not None
    for line in job.stderr:
        if "waits for the same job" in line:
            return
    raise AssertionError("the job ended")


def gone(process: psutil.Process, *, within_s: float = 20.0) -> bool:
    try:
        process.wait(within_s)
    except psutil.TimeoutExpired:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to_group", [True, False])
def test_a_job_that_is_told_to_end_ends_its_work_in_order(
    waiting: tuple[subprocess.Popen[str], Callable], server: psutil.Process, number: int, to_group: bool
) -> None:
    job, _ = waiting
    (work,) = server.children()
    (os.killpg if to_group else os.kill)(job.pid, number)
    assert end(job)[:2] == (1, "convert a: interrupted\n")
    assert gone(work) and server.is_running() and server.children() == []


def test_the_work_of_a_killed_job_ends(waiting: tuple[subprocess.Popen[str], Callable], server: psutil.Process) -> None:
    job, _ = waiting
    (work,) = server.children()
    job.kill()
    assert gone(work) and server.is_running()


def test_a_job_whose_work_is_killed_ends_by_the_same_signal(
    waiting: tuple[subprocess.Popen[str], Callable], server: psutil.Process
) -> None:
    job, _ = waiting
    (work,) = server.children()
    work.kill()
    assert end(job)[:2] == (-signal.SIGKILL, "")


@pytest.mark.fault(
    fault="the warm process that does the work of a run's jobs is killed",
    happens="its work ends with it; each job does its work itself, from the start",
    user_sees="nothing; the run takes longer",
)
def test_a_job_whose_warm_process_is_killed_does_the_work_itself(
    tmp_path: Path, waiting: tuple[subprocess.Popen[str], Callable], server: psutil.Process
) -> None:
    job, go_on = waiting
    (work,) = server.children()
    server.kill()
    assert gone(work)
    until_it_waits(job)  # this time itself
    go_on()
    code, said, _ = end(job)
    assert code == 0 and said.startswith("convert a: done in ")
    assert (tmp_path / "a" / "frames.ome.zarr" / "zarr.json").is_file()
    assert read_status(tmp_path / "a" / "status.json").stage == "convert"


def test_a_job_of_several_threads_or_without_a_warm_process_does_its_work_itself(tmp_path: Path, warm: str) -> None:
    write_raw(tmp_path / "raw.dm4", seed=1)
    arguments = [a.format("a") for a in STAGES["convert"]]
    for address, threads in ((warm, 2), ("atomdiffuser-none", 1), ("", 1)):
        code, _, itself = end(start("convert", *arguments, cwd=tmp_path, address=address, threads=threads))
        assert (code, itself) == (0, True)


def test_another_python_and_what_is_no_request_are_refused(warm: str) -> None:
    for request in (b'{"python": ["another"]}', b"{}", b"no JSON"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"\0{warm}")
            socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2, 2])
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            assert connection.makefile("rb").readline() in (warm_job.REFUSED + b"\n", b"")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{warm}")  # it still listens
        assert warm_job.peer_user(connection) == os.getuid()


def test_off_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warm_job.ADDRESS, warm_job.OFF)
    assert start_warm_process(str(CHECKOUT)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_warm_process_of_a_run_ends_with_it(tmp_path: Path, number: signal.Signals) -> None:
    write_raw(tmp_path / "raw.dm4", seed=1)
    with subprocess.Popen(
        [*RUN, str(tmp_path)], cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:  # fmt: skip
        until = time.monotonic() + 300
        while not (tmp_path / "results" / "raw" / "frames.ome.zarr" / "zarr.json").is_file():
            assert run.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        family = psutil.Process(run.pid).children(recursive=True)
        servers = [p for p in family if is_warm(p)]
        assert len([p for p in servers if p.parent() not in servers]) == 1
        os.killpg(run.pid, number)
        assert run.wait(300) in (130, -signal.SIGKILL)
    assert all(gone(process) for process in family)

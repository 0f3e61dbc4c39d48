"""The warm process of a local run: it imports what a stage needs once, and forks a child for each job that asks.

Imports take most of the time of a tiny series. The process is started by the run, listens on a socket that no other
user can use, imports a stage's modules when a job of that stage comes first, and ends with the run. It computes
nothing, so it has no threads and no GPU: a child of it is in the state of a Python that has just imported the same
modules. A job that cannot be done so is refused, and does its work itself (`warm_job.py`).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from atomdiffuser.workflow import warm_job

IMPORTS: dict[str, tuple[str, ...]] = {
    "convert": ("atomdiffuser.io._digital_micrograph", "rsciio.digitalmicrograph", "dateutil.parser"),
    "register": ("pyarrow.parquet",),
    "decay": ("pyarrow.parquet",),
    "damage": ("pyarrow.parquet",),
    "align": ("pyarrow.parquet",),
    "report": ("pyarrow.parquet", "matplotlib.backends.backend_svg", "atomdiffuser.report.render"),
}
"""What the jobs of a stage import beyond the module of the stage."""
COMPUTING = ("register", "decay", "damage", "align")
LOOPS = (
    "atomdiffuser.interpolation_kernels",
    "atomdiffuser.estimation.compiled_fit",
    "atomdiffuser.estimation.fault_kernels",
)

REQUEST_WITHIN_S = 10.0
NO_THREAD_OF_PYARROW = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # that of the allocator it brings
STOPS_WITHIN_S = 2.0
"""It waits for jobs that still have work with it; the run that leaves them does not wait with it."""


def start_warm_process(package_path: str) -> str:
    """Start the warm process of this run; returns the address for its jobs, empty where there can be none.

    It ends with this process, however that ends. Only on Linux: elsewhere a fork is not safe, or not there.
    """
    if not sys.platform.startswith("linux") or os.environ.get(warm_job.ADDRESS) == warm_job.OFF:
        return ""
    from atomdiffuser.cli_options import THREAD_VARIABLES

    address = f"atomdiffuser-{os.getpid()}-{secrets.token_hex(8)}"
    one_thread = dict.fromkeys(THREAD_VARIABLES, "1")
    environment = {**os.environ, **one_thread, **NO_THREAD_OF_PYARROW, "PYTHONPATH": package_path}
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{address}")  # a name without a file: nothing is left of it
            listener.listen(1024)
            command = [sys.executable, "-P", "-m", "atomdiffuser.workflow.warm_process", str(listener.fileno())]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
                cwd="/", pass_fds=(listener.fileno(),), start_new_session=True,  # jobs pass on what a terminal tells
            )  # fmt: skip
    except OSError:
        return ""
    atexit.register(_stop, process)
    return address


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the warm process; where this process is killed, the system closes the stream in its place."""
    process.stdin.close()  # type: ignore[union-attr]
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=STOPS_WITHIN_S)


@dataclass(frozen=True)
class Job:
    """What a job hands over: its arguments, its settings, and its streams and folder as descriptors."""

    arguments: list[str]
    environment: Mapping[str, str]
    umask: int
    ignores_interrupts: bool
    descriptors: list[int]


class WarmProcess:
    """Answers jobs until the run has ended and all are done."""

    def __init__(self, listener: socket.socket, run: int) -> None:
        self.listener = listener
        self.run = run
        self.selector = selectors.DefaultSelector()
        self.children: dict[int, socket.socket] = {}
        self.woken, self.wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self.wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for watched in (listener, run, self.woken):
            self.selector.register(watched, selectors.EVENT_READ)

    def serve(self) -> Job | None:
        """Returns in the child of a job, with that job; in this process, when there is nothing more to do."""
        goes_on = True
        while goes_on or self.children:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    job = self._answer(self.listener.accept()[0])
                    if job is not None:
                        return job
                elif key.fileobj == self.run:  # closed, for nothing is ever written
                    goes_on = False
                    self.selector.unregister(self.run)
                    self.selector.unregister(self.listener)
                    self.listener.close()
                elif key.fileobj == self.woken:
                    os.read(self.woken, 4096)
                    self._reap()
                elif key.data in self.children:  # it may have ended a moment ago
                    self._pass_on(key.data)
        return None

    def _answer(self, connection: socket.socket) -> Job | None:
        try:
            connection.settimeout(REQUEST_WITHIN_S)
            job = _received(connection) if warm_job.peer_user(connection) == os.getuid() else None
            child = self._fork(connection, job) if job is not None else None
            if child == 0:
                return job
            for descriptor in job.descriptors if job is not None else ():
                os.close(descriptor)
            if child is not None:
                self.children[child] = connection
                self.selector.register(connection, selectors.EVENT_READ, child)
                with contextlib.suppress(OSError):  # a job that is gone shows when its connection is read
                    connection.sendall(warm_job.STARTED + b"\n")
                return None
            connection.sendall(warm_job.REFUSED + b"\n")
        except (OSError, ValueError, KeyError, TypeError):  # not a job's request
            pass
        connection.close()
        return None

    def _fork(self, connection: socket.socket, job: Job) -> int | None:
        """0 in the child, its number here; None where no fork can be made."""
        if not _ready_for(job.arguments[0]):
            return None
        server = os.getpid()
        try:
            child = os.fork()
        except OSError:
            return None
        if child == 0:
            try:
                _end_with_parent(server)
                self._leave_to_parent(connection)
            except BaseException:  # it must not go on as a second warm process
                os._exit(1)
        return child

    def _leave_to_parent(self, connection: socket.socket) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in (connection, self.listener, *self.children.values()):
            other.close()
        self.selector.close()
        for descriptor in (self.woken, self.wakes):
            os.close(descriptor)

    def _pass_on(self, child: int) -> None:
        """What a job was told, or, where the job is gone, SIGKILL: nobody waits for the work."""
        connection = self.children[child]
        try:
            numbers = connection.recv(64)
        except OSError:
            numbers = b""
        if not numbers:
            self.selector.unregister(connection)
        for number in numbers or [signal.SIGKILL]:
            os.kill(child, number)

    def _reap(self) -> None:
        for child in list(self.children):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                connection = self.children.pop(child)
                with contextlib.suppress(KeyError):
                    self.selector.unregister(connection)
                with contextlib.suppress(OSError):
                    connection.sendall(b"%s %d\n" % (warm_job.ENDED, status))
                connection.close()


def _received(connection: socket.socket) -> Job | None:
    head, descriptors, *_ = socket.recv_fds(connection, 8, 4)
    request = json.loads(connection.makefile("rb").read(int.from_bytes(head, "big")))
    if request.pop("python") == warm_job.this_python():
        return Job(**request, descriptors=list(descriptors))
    for descriptor in descriptors:
        os.close(descriptor)
    return None


def _ready_for(stage: str) -> bool:
    """Whether all that the stage needs is imported, and a fork of this process is safe."""
    try:
        _import(stage)
    except Exception:  # the job meets the same, and says so
        return False
    return len(os.listdir("/proc/self/task")) == 1


def _import(stage: str) -> None:
    if f"atomdiffuser.stages.{stage}" in sys.modules:
        return
    from atomdiffuser.io._lean_dask import import_dask

    if stage == "convert":
        import_dask()
    for name in ("atomdiffuser.cli", "jsonschema", "atomdiffuser.workflow.record", *IMPORTS[stage]):
        importlib.import_module(name)
    importlib.import_module(f"atomdiffuser.stages.{stage}")
    if stage in COMPUTING:
        _import_loops()
    gc.collect()
    gc.freeze()  # children would copy the memory that a collection touches


def _import_loops() -> None:
    """What is compiled for a processor, where it can be."""
    import torch

    from atomdiffuser.compiled import compiled_here

    if compiled_here(torch.device("cpu")):
        for name in LOOPS:
            importlib.import_module(name)


def _end_with_parent(parent: int) -> None:
    """Let the system kill this child when the warm process is killed."""
    import ctypes

    die_with_parent = 1
    ctypes.CDLL(None).prctl(die_with_parent, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def work(job: Job) -> None:
    """Become the process that the job would be, and run its subcommand."""
    for target, descriptor in enumerate(job.descriptors[:3]):
        os.dup2(descriptor, target)
    os.fchdir(job.descriptors[3])
    for descriptor in job.descriptors:
        os.close(descriptor)
    os.umask(job.umask)
    os.environ.clear()
    os.environ.update(job.environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN if job.ignores_interrupts else signal.default_int_handler)
    sys.stdin, sys.stdout, sys.stderr = _streams()
    sys.argv = ["atomdiffuser", *job.arguments]
    from atomdiffuser.__main__ import run

    run()


def _streams() -> Iterator[Any]:
    """The streams as Python opens them when it starts."""
    for descriptor, before in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        raw = open(descriptor, "rb" if descriptor == 0 else "wb", closefd=False)
        line_buffering = descriptor == 2 or os.isatty(descriptor)
        yield io.TextIOWrapper(raw, encoding=before.encoding, errors=before.errors, line_buffering=line_buffering)


def main(listener: int) -> None:
    """Serve; a child of a job goes on here as that job."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a child takes it when it is ready, see interrupts.py
    with socket.socket(fileno=listener) as sock:
        job = WarmProcess(sock, 0).serve()
    if job is None:
        os._exit(0)  # to take all apart that was imported is work for nothing
    try:
        work(job)
    except SystemExit as ended:
        _leave(ended.code)
        raise


def _leave(code: Any) -> None:
    """End as Python ends, less that: threads and what was registered for the end come to theirs."""
    if code is None or isinstance(code, int):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code or 0)


if __name__ == "__main__":
    main(int(sys.argv[1]))

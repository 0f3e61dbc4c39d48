"""A job of a local run that lets the run's warm process do its work: that one has torch and the rest imported already.

The job is an ordinary process all the same. It hands over its arguments, folder, environment and streams, passes on
what it is told by signals, and ends as the work ended. Where there is no warm process, or another one than this job
needs, it does the work itself. This file is imported by every job, so it imports little.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

ADDRESS = "ATOMDIFFUSER_WARM"
"""Set by the workflow for its jobs: the name of the warm process's socket."""

OFF = "off"
"""With this in place of a name, a run starts no warm process."""

STAGES = ("convert", "register", "decay", "damage", "align", "report")
STARTED, REFUSED, ENDED = b"started", b"refused", b"ended"


def hand_over(arguments: list[str]) -> None:
    """End this process as the warm process ended the work; return where it is for this process to do.

    Only work of one thread is handed over: how many threads the numerical libraries have is settled when they are
    imported.
    """
    address = os.environ.pop(ADDRESS, "")
    if address in ("", OFF) or not arguments or arguments[0] not in STAGES or not _of_one_thread(arguments):
        return
    try:
        status = _done_elsewhere(address, arguments)
    except OSError:
        return
    if status is not None:
        _end_as(status)


def this_python() -> list[str]:
    """What has to be the same for work to be done elsewhere: interpreter, its environment and this package."""
    return [sys.version, sys.prefix, os.path.realpath(__file__)]


def _of_one_thread(arguments: list[str]) -> bool:
    return ["--threads", "1"] in (arguments[k : k + 2] for k in range(len(arguments)))


def _done_elsewhere(address: str, arguments: list[str]) -> int | None:
    """Wait status of the work, or None when it was refused, or the warm process was lost on the way."""
    import json
    import socket

    request = json.dumps(
        {
            "python": this_python(),
            "arguments": arguments,
            "environment": dict(os.environ),
            "umask": _umask(),
            "ignores_interrupts": _ignores_interrupts(),
        }
    ).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{address}")
        if peer_user(connection) != os.getuid():
            return None
        folder = os.open(".", os.O_RDONLY)
        try:
            head = len(request).to_bytes(8, "big")
            socket.send_fds(connection, [head], [0, 1, 2, folder])
            connection.sendall(request)
        finally:
            os.close(folder)
        answers = connection.makefile("rb")
        if answers.readline().split()[:1] != [STARTED]:
            return None
        told = _pass_on_signals(connection.sendall)
        try:
            ended = answers.readline().split()
        except OSError:  # the warm process is lost
            ended = []
    if ended[:1] == [ENDED]:
        return int(ended[1])
    if told:
        sys.exit(130)
    _undisturbed()
    return None


def peer_user(connection: object) -> int:
    """The user whose process is at the other end of a Unix socket."""
    import socket
    import struct

    credentials = connection.getsockopt(  # type: ignore[attr-defined]
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    return struct.unpack("3i", credentials)[1]


def _pass_on_signals(send: Callable[[bytes], object]) -> list[int]:
    """From here on SIGINT and SIGTERM are for the work; which came is noted."""
    import signal

    told: list[int] = []

    def note(number: int, frame: object) -> None:
        told.append(number)
        try:
            send(bytes([number]))
        except OSError:  # the work has ended
            pass

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return told


def _undisturbed() -> None:
    """Signals as in a process that has only started."""
    import signal

    if not _ignores_interrupts():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _ignores_interrupts() -> bool:
    import signal

    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def _umask() -> int:
    before = os.umask(0o077)
    os.umask(before)
    return before


def _end_as(status: int) -> None:
    """End with the same exit code, or by the same signal."""
    import signal

    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    sys.exit(code)

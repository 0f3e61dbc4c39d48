"""Ctrl-C: the first one ends things in order, the next must not disturb that, and none shows a traceback.

A terminal sends Ctrl-C to every process of a run at once, also to one that is only starting. So a program is started
with Ctrl-C held back, and takes it when it is ready to end in order.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

AGAIN_S = 5.0
"""A stage that was told to end is left alone for so long: a group of processes is often told twice."""

INTERRUPTED = "AtomDiffuser: interrupted; the same command goes on where this run stopped"
ENDING = "\nAtomDiffuser: ending already, which takes some seconds; once more leaves at once (nothing finished is lost)"


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Meanwhile Ctrl-C waits; a program that is started now gets it when it calls `take_interrupts`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def take_interrupts() -> None:
    """From here on Ctrl-C counts; one that was held back since this program was started comes now."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def leave_interrupts() -> None:
    """From here on Ctrl-C changes nothing, for the last moments of a program; programs that it starts do not get it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_run_in_order() -> None:
    """Let Ctrl-C end Snakemake, whose process this is, in order.

    The first is Snakemake's: it waits for its jobs, which were told too. The second is answered by a sentence; the
    third leaves at once. Where nobody catches it, it is told as a sentence.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # done already, or a job in the background, which Ctrl-C is not for
    times = 0

    def interrupt(number: int, frame: Any) -> None:
        nonlocal times
        times += 1
        if times == 2:
            os.write(2, f"{ENDING}\n".encode())  # print may be at work just now
        else:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    tell = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            leave_interrupts()
            print(INTERRUPTED, file=sys.stderr)
        else:
            tell(kind, error, trace)

    sys.excepthook = hook


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Meanwhile SIGTERM, as from a cluster at its time limit, ends like Ctrl-C, and once: what is half written goes."""
    told = -AGAIN_S

    def stop(number: int, frame: Any) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= AGAIN_S:
            told = now
            raise KeyboardInterrupt

    before: dict[int, Any] = {}
    try:
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, stop)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background it is not for us
            before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    except ValueError:  # only the main thread may
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_undisturbed(command: Sequence[str], *, cwd: Any = None, env: Mapping[str, str] | None = None) -> None:
    """Run a program that Ctrl-C does not reach, such as the one that makes the summary of an interrupted run."""
    import subprocess

    with _handling_interrupts(signal.SIG_IGN):
        process = subprocess.Popen(command, cwd=cwd, env=env)
    process.wait()


def run_to_its_end(command: Sequence[str], **options: Any) -> int:
    """Run a program that takes Ctrl-C from the terminal itself; SIGTERM is passed on. 130 when it was interrupted."""
    import subprocess

    interrupted = False

    def note(number: int, frame: Any) -> None:
        nonlocal interrupted
        interrupted = True

    with _handling_interrupts(note):
        with interrupts_held():
            process = subprocess.Popen(command, **options)
        before = signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
        try:
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    return 130 if interrupted else code


@contextmanager
def _handling_interrupts(handler: Callable[[int, Any], None] | signal.Handlers) -> Iterator[None]:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background, and so is what it starts
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

"""Progress of long work: a bar with rate and time left in a terminal, sparse lines in the log of a job."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]

IN_JOB = "ATOMDIFFUSER_JOB"
"""Set by the workflow for its jobs: several run at a time, and their bars would overwrite each other."""

UNITS = {
    "convert": "frames",
    "register": "fits",
    "decay": "frames",
    "damage": "frames",
    "align": "frames",
    "train": "steps",
}
LINE_EVERY_S = 30.0


@contextmanager
def progress_of(stage: str, label: str) -> Iterator[Progress]:
    """A callback (done, total) that shows how far a stage is: a bar in a terminal, lines in the log elsewhere."""
    if not sys.stderr.isatty() or os.environ.get(IN_JOB):
        yield sparse_lines(stage, label)
        return
    from rich.console import Console

    with bar(stage, label, Console(stderr=True)) as progress:
        yield progress


@contextmanager
def bar(stage: str, label: str, console) -> Iterator[Progress]:
    """A bar on a rich console, gone when the work is done; what is printed to stderr meanwhile stands above it."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    unit = UNITS.get(stage, "steps")
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("left"),
    )  # fmt: skip
    started = time.monotonic()
    with Bar(*columns, console=console, transient=True) as shown:
        task = shown.add_task(label, total=None, rate="")
        first: list[tuple[int, float]] = []  # a resumed run does not start at 0

        def progress(done: int, total: int) -> None:
            now = time.monotonic()
            if not first:
                first.append((max(0, done - 1), started))
            start, since = first[0]
            shown.update(task, completed=done, total=total or None, rate=rate_text(done - start, now - since, unit))

        yield progress


def sparse_lines(stage: str, label: str, *, every_s: float = LINE_EVERY_S) -> Progress:
    """A callback (done, total) that logs a line now and then, and one at the end if there was any before."""
    unit = UNITS.get(stage, "steps")
    logger = logging.getLogger("atomdiffuser")
    started = told = time.monotonic()
    said = False
    before: int | None = None

    def progress(done: int, total: int) -> None:
        nonlocal told, said, before
        now = time.monotonic()
        before = max(0, done - 1) if before is None else before
        if now - told < every_s and not (said and done == total):
            return
        told, said = now, True
        made = done - before
        left = f", {time_text((total - done) * (now - started) / made)} left" if made > 0 and total > done else ""
        rate = rate_text(made, now - started, unit)
        logger.info("%s: %d of %s %s, %s%s", label, done, total or "?", unit, rate, left)

    return progress


def rate_text(made: int, seconds: float, unit: str) -> str:
    """“3.2 frames/s”, or “4.1 s per frame” where that is easier to imagine."""
    if made <= 0 or seconds <= 0:
        return ""
    rate = made / seconds
    return f"{rate:.3g} {unit}/s" if rate >= 1 else f"{1 / rate:.3g} s per {unit.removesuffix('s')}"


def time_text(seconds: float) -> str:
    """A time as h:mm:ss or m:ss."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"

"""Kill each stage at exact points, run it again, and compare with a run that nobody disturbed.

A point is a moment before one operation on a file (open for writing, rename, remove, make a folder), counted by
Python's audit events, or a share of the stage's run time. Every attempt is a child forked from one process that
imported the package and computed nothing itself, so it costs the stage alone.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from atomdiffuser.cli import main
from atomdiffuser.stages.simulate import simulate
from benchmarks.result_files import differences, result_files

SERIES = "series"
STAGES = {
    "convert": ["../raw.dm4", "frames.ome.zarr/zarr.json", "--series-id", SERIES],
    "register": ["frames.ome.zarr/zarr.json", "pairs.parquet", "trajectory.parquet"],
    "decay": ["frames.ome.zarr/zarr.json", "trajectory.parquet", "decay.zarr/zarr.json"],
    "damage": ["frames.ome.zarr/zarr.json", "trajectory.parquet", "decay.zarr/zarr.json", "damage.parquet",
               "critical_fluence.csv"],
    "align": ["frames.ome.zarr/zarr.json", "trajectory.parquet", "aligned.ome.zarr/zarr.json"],
    "report": [".", "report.html", "--series-id", SERIES],
}  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WRITING = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate"}


@dataclass(frozen=True)
class Kill:
    """One attempt: where it was killed and what was found afterwards.

    Attributes
    ----------
    point
        The file operation before which it was killed, or the time after the start.
    died
        By that signal, or in order after it; False when it had ended before.
    wrong
        Files under their final names that are neither the old nor the new ones; empty when all is well.
    after
        Differences from the undisturbed run after the same command was given again.
    """

    stage: str
    signal: str
    onto: str
    point: str
    died: bool
    wrong: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def harmless(self) -> bool:
        return not self.wrong and not self.after


def write_raw(path: Path, *, seed: int = 1) -> None:
    """A raw file of four small frames."""
    simulate(path, format="dm4", n_frames=4, shape=(72, 88), electrons_per_px=200, drift_px_per_frame=0.6,
             random_walk_px=0.1, pixel_size_nm=0.03, seed=seed)  # fmt: skip


def kill_stages(
    folder: Path, points_per_stage: int | None, *, stages: Sequence[str] = tuple(STAGES), times_per_stage: int = 0
) -> Iterator[Kill]:
    """Kill every stage, in its place in the workflow; the signals take turns.

    Parameters
    ----------
    folder
        An empty folder to work in.
    points_per_stage
        Operations on files before which to kill, spread over all there are; None: every one.
    times_per_stage
        Further kills, spread over the stage's run time.

    Half of the points are on a first run, half on one that replaces results.
    """
    write_raw(folder / "raw.dm4")
    done = folder / SERIES
    done.mkdir()
    _in_child(lambda: _prepare(folder / "other.dm4"))
    turn = 0
    for stage in STAGES:
        before, other = folder / "before", folder / "replaced"
        for copy in (before, other):
            shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(done, before, symlinks=True)
        started = time.monotonic()
        events = _events(done, stage)
        seconds = time.monotonic() - started
        expected = result_files(done)
        # results of the same stage that a new run replaces: of other contents, where that is cheap to make
        shutil.copytree(done, other, symlinks=True)
        if stage == "convert":
            _in_child(lambda other=other, stage=stage: _run(other, stage, raw="../other.dm4"))
        if stage not in stages:
            continue
        count = len(events) if points_per_stage is None else min(points_per_stage, len(events))
        chosen = [int((i + 0.5) * len(events) / count) for i in range(count)]
        points: list[tuple[str, Callable[[int], None]]] = [
            (f"before {events[n]}", lambda number, n=n: _kill_at_event(n, number)) for n in chosen
        ]
        shares = [(i + 0.5) / times_per_stage for i in range(times_per_stage)]
        points += [
            (f"after {s:.0%} of its time", lambda number, after_s=s * seconds: _kill_after(after_s, number))
            for s in shares
        ]
        for point, arm in points:
            onto = (before, other)[turn % 2]
            number = SIGNALS[turn % len(SIGNALS)]
            turn += 1
            yield _attempt(folder / "work" / SERIES, onto, stage, number, point, arm, expected)


def run() -> pd.DataFrame:
    """Every operation on a file of every stage, or KILL_POINTS of each, and thirty moments in between."""
    import tempfile

    points = os.environ.get("KILL_POINTS")
    kills: list[Kill] = []
    with tempfile.TemporaryDirectory() as folder:
        for kill in kill_stages(Path(folder), int(points) if points else None, times_per_stage=5):
            kills.append(kill)
            if len(kills) % 20 == 0:
                told = f"{len(kills)} kills so far, {sum(k.harmless for k in kills)} without a loss"
                print(f"{kill.stage}: {told}", file=sys.stderr, flush=True)
    return table_of(kills)


def table_of(kills: Sequence[Kill]) -> pd.DataFrame:
    """A row per stage and signal: how often it was killed, and how often something was lost or wrong."""
    rows = pd.DataFrame(
        [(k.stage, k.signal, k.died, not k.wrong, not k.after) for k in kills],
        columns=["stage", "signal", "killed", "nothing_wrong", "same_results"],
    )
    table = rows.groupby(["stage", "signal"], sort=False).agg(
        points=("killed", "size"), killed=("killed", "sum"), nothing_wrong=("nothing_wrong", "sum"),
        same_results=("same_results", "sum"),
    ).reset_index()  # fmt: skip
    table["reached"] = (table["nothing_wrong"] == table["points"]) & (table["same_results"] == table["points"])
    for kill in kills:
        if not kill.harmless:
            print(f"{kill.stage} {kill.signal} {kill.point}: {[*kill.wrong, *kill.after][:5]}", file=sys.stderr)
    return table


def _attempt(
    work: Path, onto: Path, stage: str, number: int, point: str, arm: Callable[[int], None], expected: dict[str, str]
) -> Kill:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(onto, work, symlinks=True)
    for raw in ("raw.dm4", "other.dm4"):
        if not (work.parent / raw).exists():
            os.link(onto.parent / raw, work.parent / raw)
    old = result_files(work)

    def disturbed() -> None:
        arm(number)
        _run(work, stage)

    status = _in_child(disturbed)
    # a signal that may be handled ends the stage in order, with exit code 1
    died = os.WIFSIGNALED(status) or (number != signal.SIGKILL and os.WEXITSTATUS(status) == 1)
    found = result_files(work)
    own = {name: content for name, content in found.items() if name != "status.json" and not _is_temporary(name)}
    wrong = [name for name, content in own.items() if content not in (old.get(name), expected.get(name))]
    again = _in_child(lambda: _run(work, stage))
    after = differences(result_files(work), expected) + ([f"exit {again}"] if again else [])
    kind = "first run" if onto.name == "before" else "replacing"
    return Kill(stage, signal.Signals(number).name, kind, point, died, tuple(wrong), tuple(after))


def _is_temporary(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def _prepare(path: Path) -> None:
    write_raw(path, seed=2)


def _run(folder: Path, stage: str, *, raw: str | None = None) -> None:
    """A stage's command, in the folder of the series, as the workflow gives it."""
    os.chdir(folder)
    arguments = [raw if raw and a == "../raw.dm4" else a for a in STAGES[stage]]
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        main([stage, *arguments, "--threads", "1", "--status", "status.json", "--log", f"logs/{stage}.log"])


def _events(folder: Path, stage: str) -> list[str]:
    """Run a stage undisturbed; returns its operations on files, as `what path`."""
    record = folder.parent / "events.json"

    def counted() -> None:
        seen: list[str] = []
        _on_write(seen.append)
        try:
            _run(folder, stage)
        finally:
            record.write_text(json.dumps(seen))

    if status := _in_child(counted):
        raise RuntimeError(f"{stage} failed undisturbed, with wait status {status}")
    return json.loads(record.read_text())[:-1]  # the last is the record itself


def _on_write(act: Callable[[str], None]) -> None:
    """Call back before every operation by which Python changes the file system."""

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            act(f"writing {os.fspath(path)}" if isinstance(path, str | os.PathLike) else "writing")
        elif event in WRITING:
            act(f"{event.removeprefix('os.')} {arguments[0]}")

    sys.addaudithook(hook)


def _kill_at_event(n: int, number: int) -> None:
    left = [n]

    def count(_: str) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), number)
        left[0] -= 1

    _on_write(count)


def _kill_after(seconds: float, number: int) -> None:
    """By a child of the child, since a signal by a timer would replace the handlers under test."""
    pid = os.getpid()
    if os.fork() == 0:
        time.sleep(seconds)
        try:
            os.kill(pid, number)
        finally:
            os._exit(0)


def _in_child(work: Callable[[], None]) -> int:
    """Do it in a fork of this process; returns its wait status."""
    pid = os.fork()
    if pid == 0:
        code = 70
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        try:
            work()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


if __name__ == "__main__":
    chosen = None if sys.argv[2] == "all" else int(sys.argv[2])
    for kill in kill_stages(Path(sys.argv[1]), chosen, times_per_stage=int(sys.argv[3])):
        print(json.dumps({**vars(kill), "harmless": kill.harmless}), flush=True)

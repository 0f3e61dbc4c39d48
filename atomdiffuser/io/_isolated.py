"""HDF5 files are read by a second process first: on some damaged ones the HDF5 library never ends, or ends its process.

The second process reads what a look into the file reads, with a limit on processor time. Only a file that it got
through is opened by this process. It stays for the next file, and is started anew after one that it did not survive.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from atomdiffuser.errors import ReadError
from atomdiffuser.interrupts import interrupts_held

LEAST_SECONDS, SECONDS_PER_BYTE = 1.5, 1 / 5e6
"""Processor time for a file: slow disks and other work on the machine do not count."""

LONGEST_WAIT_S = 900.0
"""For a reader that waits for something that never comes, such as a lost network drive."""

_inside = False
_lock = threading.Lock()
_survived: set[tuple[object, ...]] = set()


def check_survives(path: Path) -> None:
    """Raise ReadError for a file on which the reading process hung or crashed; each file is tried once."""
    status = path.stat()
    key = (path.absolute(), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    if _inside or key in _survived:
        return
    with _lock:
        ended = _helper.survives(path)
    if not ended:
        raise ReadError(
            f"{path}: damaged HDF5 file (the HDF5 library crashed, or did not come to an end); "
            "copy it again from the microscope"
        )
    _survived.add(key)


class _Helper:
    """The second process."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def survives(self, path: Path) -> bool:
        """Whether the process is still there after reading the file."""
        answer = b""
        try:
            if self.process is None or self.process.poll() is not None:
                self._start()
            assert self.process is not None and self.process.stdin is not None
            self.process.stdin.write(os.fsencode(json.dumps(os.fspath(path.absolute()))) + b"\n")
            self.process.stdin.flush()
            answer = self._line()
        except BrokenPipeError:
            pass
        finally:  # an answer that comes after an interruption would be taken for that of the next file
            if not answer:
                self.close()
        return bool(answer)

    def close(self) -> None:
        """End the process, whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                try:
                    pipe.close()  # type: ignore[union-attr]
                except BrokenPipeError:
                    pass
            self.process = None

    def _start(self) -> None:
        self.close()
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(p for p in (package, os.environ.get("PYTHONPATH", "")) if p)
        # removed by whichever of the two processes is left
        with tempfile.TemporaryDirectory(prefix="atomdiffuser-", ignore_cleanup_errors=True) as folder:
            with interrupts_held():  # and never taken: Ctrl-C is for this process, and that one ends with it
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "atomdiffuser.io._isolated", folder],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": path},
                )  # fmt: skip
            if self._line() != b"ready\n":
                raise ReadError(
                    "a second process that reads HDF5 files could not be started; free memory and run again"
                )

    def _line(self) -> bytes:
        assert self.process is not None and self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            return self.process.stdout.readline() if selector.select(LONGEST_WAIT_S) else b""


_helper = _Helper()
_of_parents: list[_Helper] = []


def _start_anew() -> None:
    """Leave the helper to the parent process; two that write to one pipe would take each other's answers."""
    global _helper, _lock
    _of_parents.append(_helper)
    _helper, _lock = _Helper(), threading.Lock()


atexit.register(lambda: _helper.close())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def _serve(folder: Path) -> None:
    """Read every file named on stdin; the answer says only that this process is still there."""
    global _inside
    _inside = True
    import dask

    from atomdiffuser.io import readers

    dask.config.set(scheduler="synchronous")
    _warm_up(folder)
    answers = os.fdopen(os.dup(1), "wb")
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        path = Path(json.loads(os.fsdecode(line)))
        try:
            _limit_seconds(LEAST_SECONDS + path.stat().st_size * SECONDS_PER_BYTE)
            readers.inspect(path)
        except Exception:  # whoever asked reads the file too, and says what is wrong with it
            pass
        _limit_seconds(0)
        answers.write(b"done\n")
        answers.flush()


def _warm_up(folder: Path) -> None:
    """Import all that reading takes, which is most of the time of a first file and would count for it."""
    import numpy as np

    from atomdiffuser.io import readers
    from atomdiffuser.io.raw_writers import write_velox_emd

    path = folder / "first.emd"
    known = dict(beam_energy_kV=200.0, probe_current_pA=30.0, dwell_s=1e-6)
    write_velox_emd(path, np.zeros((2, 8, 8), np.uint16), frame_time_s=1.0, pixel_size_nm=0.02, **known)
    readers.inspect(path)
    shutil.rmtree(folder, ignore_errors=True)


def _limit_seconds(seconds: float) -> None:
    """Let the system end this process when it has worked that much longer; 0: no more limit."""
    if hasattr(signal, "setitimer"):  # not on Windows: there the wait alone is limited
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    # as a module of its own name, so that the readers see that they are inside
    from atomdiffuser.io import _isolated

    _isolated._serve(Path(sys.argv[1]))

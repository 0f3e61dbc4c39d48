"""The second process that tries HDF5 files: what ends it, what must not, and what stays of it (nothing)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_files import write_valid

from atomdiffuser.errors import ReadError
from atomdiffuser.io import _isolated
from atomdiffuser.io._isolated import _Helper, check_survives


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Helper]:
    """One of this test's own, that is asked about every file."""
    own = _Helper()
    monkeypatch.setattr(_isolated, "_helper", own)
    monkeypatch.setattr(_isolated, "_survived", set())
    yield own
    own.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_valid(tmp_path / "a.emd")
    return tmp_path / "a.emd"


def test_a_file_on_which_the_process_dies_is_refused_and_the_next_one_read(helper: _Helper, file: Path) -> None:
    check_survives(file)
    asked = helper.process
    asked.send_signal(signal.SIGSTOP)  # so that it cannot answer before it is killed
    write_valid(file.with_name("b.emd"))
    answer = helper._line

    def killed() -> bytes:
        asked.kill()
        return answer()

    helper._line = killed  # type: ignore[method-assign]
    with pytest.raises(ReadError, match=r"b\.emd: damaged HDF5 file \(the HDF5 library crashed"):
        check_survives(file.with_name("b.emd"))
    helper._line = answer  # type: ignore[method-assign]
    check_survives(file.with_name("b.emd"))
    assert helper.process.pid != asked.pid


def test_each_file_is_tried_once_and_again_when_it_changed(helper: _Helper, file: Path) -> None:
    check_survives(file)
    first = helper.process
    helper.close()
    check_survives(file)
    assert helper.process is None
    file.write_bytes(file.read_bytes() + b"\0")
    check_survives(file)
    assert helper.process is not None and helper.process.pid != first.pid


def test_ctrl_c_is_not_for_it(helper: _Helper, file: Path) -> None:
    """A terminal tells all processes; were it to end here, a sound file would be called damaged."""
    check_survives(file)
    pid = helper.process.pid
    os.kill(pid, signal.SIGINT)
    _isolated._survived.clear()
    check_survives(file)
    assert helper.process.pid == pid


@pytest.mark.parametrize("moment", ["starting", "reading"])
def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next(
    helper: _Helper, file: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if moment == "reading":
        check_survives(file)
        _isolated._survived.clear()

    def interrupted() -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(helper, "_line", interrupted)
        check_survives(file)
    assert helper.process is None
    check_survives(file)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_one_of_its_own(file: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from atomdiffuser.io import _isolated
path = Path(sys.argv[1])
_isolated.check_survives(path)
before = _isolated._helper.process.pid
child = os.fork()
if child == 0:
    _isolated._survived.clear()
    _isolated.check_survives(path)
    sys.exit(_isolated._helper.process.pid == before)
assert os.waitpid(child, 0)[1] == 0
_isolated._survived.clear()
_isolated.check_survives(path)
print(_isolated._helper.process.pid == before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@pytest.mark.parametrize("asked", [False, True])
def test_nothing_of_it_stays_when_its_process_is_killed(file: Path, tmp_path: Path, asked: bool) -> None:
    script = "import sys, time; from pathlib import Path; from atomdiffuser.io import _isolated\n"
    script += "start = _isolated._Helper._line\n"
    if not asked:
        script += "def tell(self):\n    print(self.process.pid, flush=True); return start(self)\n"
        script += "_isolated._Helper._line = tell\n"
    script += "_isolated.check_survives(Path(sys.argv[1]))\n"
    script += "print(_isolated._helper.process.pid, flush=True); time.sleep(60)"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", script, str(file)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as process:  # fmt: skip
        pid = int(process.stdout.readline())
        process.kill()
    until = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < until, "it outlives the process that asked"
        time.sleep(0.05)
    assert list(temporary.iterdir()) == []

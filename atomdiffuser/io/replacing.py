"""Files that appear whole or not at all: written under a temporary name beside their place, renamed when complete."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LEFT_BEHIND_S = 60.0
"""A temporary file of this age was left by a process that was killed: writing one takes less."""

LEFT_BEHIND_ELSEWHERE_S = 86400.0
"""The same for one of another machine (each container is one), whose processes and clock are not seen from here."""

_number = itertools.count()


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when all went well, and is removed otherwise.

    Readers see either the old or the new file, never half of one; of two writers at a time the later wins. What a
    killed writer left behind is cleared.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # short enough for any name that the file system takes; process numbers mean something on their own machine only
    start, here = f".{path.name[:40]}.", hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    for leftover in path.parent.glob(f"{glob.escape(start)}{'[0-9a-f]' * 8}.*.partial"):
        with suppress(OSError):
            age_s = time.time() - leftover.stat().st_mtime
            if leftover.name.startswith(f"{start}{here}."):
                if not _alive(leftover) or age_s > LEFT_BEHIND_S:
                    leftover.unlink()
            elif age_s > LEFT_BEHIND_ELSEWHERE_S:
                leftover.unlink()
    # numbered, as long names that begin alike, and threads, may be written at a time
    temporary = path.with_name(f"{start}{here}.{os.getpid()}-{next(_number)}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _alive(temporary: Path) -> bool:
    """Whether the process that writes a temporary file is still there; its number is in the name."""
    number = temporary.name.split(".")[-2].split("-")[0]
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        return True
    return True

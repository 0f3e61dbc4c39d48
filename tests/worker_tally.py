"""Work for workers of a cluster that is quick to do; a module of its own, so that workers need nothing else for it."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atomdiffuser.cluster import RETRIES
from atomdiffuser.errors import ReadError


@dataclass(frozen=True)
class Tally:
    """Work of a worker that writes down in a folder how often it was opened and what it was given."""

    folder: Path
    does: str = "squares"

    def __call__(self) -> Callable[[int], int]:
        (self.folder / f"opened-{os.getpid()}").touch(exist_ok=False)
        return getattr(self, self.does)

    def tried(self, task: int) -> int:
        with open(self.folder / f"tried-{task}", "a") as file:
            file.write(".")
        return (self.folder / f"tried-{task}").stat().st_size

    def squares(self, task: int) -> int:
        self.tried(task)
        if task % 2:
            logging.getLogger("atomdiffuser.estimation").warning("part %d is odd", task)
        return task**2

    def is_damaged(self, task: int) -> None:
        self.tried(task)
        raise ReadError(f"frame {task} is damaged")

    def fails_at_first(self, task: int) -> int:
        if self.tried(task) <= RETRIES:
            raise OSError("the file system was not there")
        return task

    def fails(self, task: int) -> None:
        self.tried(task)
        raise RuntimeError("nobody knows why")

    def dies(self, task: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def waits(self, task: int) -> int:
        time.sleep(2.0)
        return task

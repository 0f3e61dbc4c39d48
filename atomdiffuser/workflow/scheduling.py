"""How often Snakemake looks for jobs to start: whenever one has ended, and once a second beside that; and how it ends.

Its scheduler asks for another look a second later with every look, those at ended jobs included, so each job that ends
begins a chain of its own. After some hundred jobs most of what Snakemake does is looking, on a core that jobs could
use.
"""

from __future__ import annotations

import threading
from typing import Any

METHOD = "_schedule_reevalutation"


def look_once_a_second(scheduler: Any = None) -> None:
    """Let looks that are asked for while one is due wait for that one; nothing where Snakemake does it another way."""
    if scheduler is None:
        from snakemake.scheduling.job_scheduler import JobScheduler as scheduler
    if not hasattr(scheduler, METHOD) or getattr(scheduler, METHOD).__code__.co_varnames[:2] != ("self", "delay"):
        return

    def schedule(self: Any, delay: float) -> None:
        due = self.__dict__.setdefault("_looks_due", set())
        if delay in due:
            return
        due.add(delay)

        def look() -> None:
            due.discard(delay)
            self._open_jobs.release()

        threading.Timer(delay, look).start()

    setattr(scheduler, METHOD, schedule)


def end_without_waiting_for_itself(scheduler: Any = None) -> None:
    """Let SIGTERM note the end in a thread: its handler takes a lock, which the loop that it interrupts may hold."""
    if scheduler is None:
        from snakemake.scheduling.job_scheduler import JobScheduler as scheduler
    note_the_end = getattr(scheduler, "exit_gracefully", None)
    if note_the_end is None:
        return

    def exit_gracefully(self: Any, *signal: Any) -> None:
        threading.Thread(target=note_the_end, args=(self, *signal)).start()

    scheduler.exit_gracefully = exit_gracefully

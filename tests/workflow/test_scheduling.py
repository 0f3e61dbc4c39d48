"""Snakemake looks for jobs once a second, however many have ended."""

from __future__ import annotations

import threading
import time

from snakemake.scheduling.job_scheduler import JobScheduler

from atomdiffuser.workflow.scheduling import METHOD, end_without_waiting_for_itself, look_once_a_second

DELAY_S = 0.1


def looks(scheduler: type, *, ended: int, during_s: float) -> int:
    """How often a scheduler looks after so many jobs ended at once; each look asks for the next."""
    made = scheduler.__new__(scheduler)
    made._open_jobs = threading.Semaphore(0)
    for _ in range(ended):
        getattr(made, METHOD)(DELAY_S)
    count = 0
    until = time.monotonic() + during_s
    while made._open_jobs.acquire(timeout=max(0.0, until - time.monotonic())):
        count += 1
        if time.monotonic() < until:
            getattr(made, METHOD)(DELAY_S)
    return count


def test_looks_do_not_multiply() -> None:
    class Scheduler(JobScheduler):
        pass

    assert looks(Scheduler, ended=20, during_s=5 * DELAY_S) > 30  # as Snakemake does it
    look_once_a_second(Scheduler)
    assert 1 <= looks(Scheduler, ended=20, during_s=5 * DELAY_S) <= 6
    assert JobScheduler.__dict__[METHOD] is not Scheduler.__dict__[METHOD]


def test_another_snakemake_is_left_alone() -> None:
    class Without:
        pass

    class Other:
        def _schedule_reevalutation(self, seconds: int, why: str) -> None: ...

    before = Other.__dict__[METHOD]
    look_once_a_second(Without)
    look_once_a_second(Other)
    assert METHOD not in Without.__dict__ and Other.__dict__[METHOD] is before


def test_sigterm_does_not_wait_for_the_lock_of_the_loop_that_it_interrupts() -> None:
    class Loop:
        def __init__(self) -> None:
            self._lock, self.ended = threading.Lock(), threading.Event()

        def exit_gracefully(self, *signal: object) -> None:
            with self._lock:
                self.ended.set()

    end_without_waiting_for_itself(Loop)
    loop = Loop()
    with loop._lock:
        handler = threading.Thread(target=loop.exit_gracefully, args=(15, None), daemon=True)
        handler.start()
        handler.join(5)
        assert not handler.is_alive() and not loop.ended.is_set()
    assert loop.ended.wait(5)

"""Work that is handed to the workers of a dask.distributed cluster, in parts, with their results in order.

A worker opens what the work needs once, keeps it while the connection lasts, and does one part at a time, because a
source of frames is not made for threads. What is on its way is bounded: two parts for each worker, whose results wait
there until their turn.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from atomdiffuser.errors import AtomDiffuserError, ClusterError, SettingsError

ANSWERS_WITHIN_S = 30.0
LOOKS_EVERY_S = 5.0
RETRIES = 2  # of a part that fails by other errors than those that say what is wrong
PARTS_A_WORKER = 4  # at least, where there are as many pairs: the last to finish should not keep the others waiting
PAIRS_A_PART = 32  # at most: what is lost with a worker that dies is a minute or two
ON_THEIR_WAY = 2  # parts for each worker

ADDRESS = re.compile(r"[a-z]+://[^\s/]+:\d+")

Opener = Callable[[], Callable[[Any], Any]]
"""Opens what the work needs, on a worker; returns what does a part of the work. It is pickled."""

logger = logging.getLogger(__name__)


def require_address(text: str) -> str:
    """The text, where it is an address of a scheduler; else SettingsError.

    >>> require_address("tcp://gpu-node:8786")
    'tcp://gpu-node:8786'
    """
    if not ADDRESS.fullmatch(text):
        raise SettingsError(f"dask_scheduler: {text!r} is not an address; expected one such as tcp://host:8786")
    return text


@contextmanager
def workers_at(address: str, open_work: Opener, *, answers_within_s: float = ANSWERS_WITHIN_S) -> Iterator[Workers]:
    """The workers of the scheduler at an address, for work that each of them opens by `open_work`.

    Raises
    ------
    ClusterError
        When `distributed` is not installed, nobody answers there, or no worker is connected within that time.
    """
    workers = Workers(_connect(address, answers_within_s), address, open_work, answers_within_s)
    try:
        workers.wait_for_one()
        yield workers
    finally:
        workers.close()


class Workers:
    """Workers that do parts of one work; made by `workers_at`."""

    def __init__(self, client: Any, address: str, open_work: Opener, answers_within_s: float) -> None:
        self.client, self.address, self.answers_within_s = client, address, answers_within_s
        self.token = uuid.uuid4().hex
        self._order = Order(self.token, package_hash(), open_work)

    def parts(self, n: int, largest: int = PAIRS_A_PART) -> list[slice]:
        """Parts of n pairs, of `largest` and `PAIRS_A_PART` at most, so that every worker gets some."""
        size = max(1, min(largest, PAIRS_A_PART, -(-n // (PARTS_A_WORKER * self.count()))))
        return [slice(at, min(at + size, n)) for at in range(0, n, size)]

    def count(self) -> int:
        """Workers there are now; at least 1, for one that comes."""
        try:
            return max(1, len(self.client.nthreads()))
        except OSError:
            raise self._gone() from None

    def each(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """What the workers make of each part, in order.

        Raises
        ------
        AtomDiffuserError
            What a worker raised; ClusterError when the scheduler is gone, no worker is left, or several died of a part.
        """
        pending: deque[Any] = deque()
        try:
            for task in tasks:
                pending.append(self.client.submit(do_part, Part(self._order, task), pure=False, retries=RETRIES))
                if len(pending) >= ON_THEIR_WAY * self.count():
                    yield self._result(pending.popleft())
            while pending:
                yield self._result(pending.popleft())
        except CancelledError:
            raise self._gone() from None
        finally:
            for future in pending:
                future.release()

    def wait_for_one(self) -> None:
        """Return as soon as there is a worker; ClusterError when none comes in time."""
        try:
            self.client.wait_for_workers(1, timeout=self.answers_within_s)
        except OSError:  # a timeout is one
            if self.client.status != "running":
                raise self._gone() from None
            raise ClusterError(
                f"the dask scheduler at {self.address} has had no worker for {self.answers_within_s:g} s; "
                f"start one with `dask worker {self.address}`"
            ) from None

    def close(self) -> None:
        """Let workers forget the work, and leave the cluster."""
        with suppress(OSError):
            if self.client.status == "running":
                self.client.run(_forget, self.token, on_error="ignore")
            self.client.close()

    def _gone(self) -> ClusterError:
        return ClusterError(
            f"the dask scheduler at {self.address} has gone while it had work; start it, then run this again"
        )

    def _result(self, future: Any) -> Any:
        from distributed import KilledWorker

        try:
            outcome = self._waited_for(future)
        except KilledWorker as error:
            raise ClusterError(
                f"workers of {self.address} died {error.allowed_failures + 1} times at the same part of the work; "
                "their logs say why (often too little memory: see --memory-limit of `dask worker`)"
            ) from None
        except ModuleNotFoundError as error:
            raise ClusterError(
                f"a worker of {self.address} has no {error.name}; workers need AtomDiffuser as it is installed here"
            ) from error
        for message in outcome.warnings:
            logger.warning("%s: %s", outcome.worker, message)
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def _waited_for(self, future: Any) -> Outcome:
        """What a part gives, as soon as it is there; looks now and then whether there is a worker at all."""
        while True:
            try:
                return future.result(timeout=LOOKS_EVERY_S)
            except TimeoutError:
                if future.status == "error":  # it is the part's own
                    raise
            self.wait_for_one()


@dataclass(frozen=True)
class Order:
    """What a worker must know of the whole work."""

    token: str
    package_hash: str
    open_work: Opener


@dataclass(frozen=True)
class Part:
    """A part of the work as it goes to a worker: one object, into which dask does not look."""

    order: Order
    task: Any


@dataclass(frozen=True)
class Outcome:
    """What became of a part on a worker."""

    worker: str
    value: Any
    error: AtomDiffuserError | None
    warnings: Sequence[str]


_opened: dict[str, Callable[[Any], Any]] = {}  # of one token: what this worker keeps between parts
_one_at_a_time = threading.Lock()


def do_part(part: Part) -> Outcome:
    """Do one part of the work on a worker; an error that says what is wrong is an outcome, which is not tried again."""
    from distributed import get_worker

    order, worker = part.order, get_worker().address
    with _one_at_a_time, _heard_warnings() as warnings:
        try:
            if package_hash() != order.package_hash:
                raise ClusterError(
                    f"the worker {worker} has another AtomDiffuser; install the same, and start it again"
                )
            if order.token not in _opened:
                _opened.clear()
                _opened[order.token] = order.open_work()
            return Outcome(worker, _opened[order.token](part.task), None, warnings)
        except AtomDiffuserError as error:
            return Outcome(worker, None, error, warnings)


def require_seen(path: Path) -> None:
    """On a worker: ClusterError where it does not see the files."""
    if not path.exists():
        from distributed import get_worker

        raise ClusterError(
            f"the worker {get_worker().address} does not see {path}; workers need the same files under the same path"
        )


@cache
def package_hash() -> str:
    """Hash of the package's code and weights when it was asked first, which is about when they were loaded."""
    digest, folder = hashlib.sha256(), Path(__file__).resolve().parent
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".safetensors")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _connect(address: str, answers_within_s: float) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError(
            f"dask_scheduler needs a further package ({error}): pip install 'atomdiffuser[distributed]'"
        ) from None
    _log_as_usual()
    client = Client.__new__(Client)  # at hand where its own start fails
    try:
        Client.__init__(client, address, timeout=answers_within_s, set_as_default=False)
        return client
    except (OSError, ValueError, TypeError) as error:  # nobody there, no such kind of address, no certificate for it
        # Left alone it closes itself when it is collected, and waits for ever where the next one is just being made.
        with suppress(Exception):
            client.close()
        why = "" if isinstance(error, OSError) else f" ({error})"
        raise ClusterError(
            f"no dask scheduler answers at {address} within {answers_within_s:g} s{why}; start it with "
            "`dask scheduler`, correct dask_scheduler, or leave that empty to work on this machine alone"
        ) from None


def _log_as_usual() -> None:
    """Let messages of distributed go where all others go, not to the terminal."""
    for name in ("distributed", "distributed.client", "distributed.scheduler", "distributed.worker", "tornado"):
        log = logging.getLogger(name)
        log.handlers.clear()
        log.propagate = True


@contextmanager
def _heard_warnings() -> Iterator[list[str]]:
    """Warnings of the package while a part is done, for the log of the job that wants it."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    package = logging.getLogger("atomdiffuser")
    package.addHandler(handler)
    try:
        yield heard
    finally:
        package.removeHandler(handler)


def _forget(token: str) -> None:
    """On a worker: let go of what was opened for a work that is done."""
    _opened.pop(token, None)

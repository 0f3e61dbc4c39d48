"""Fuzzing of the readers: damaged files by the thousand, each read as the workflow reads it, in a process of its own.

Every file must end as read or refused by one of our own errors with a sentence that names it: no crash of the process,
no hang, no more memory than a gigabyte. `python -m benchmarks.fuzz DM 4711 out.dm4` writes the file of that number.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pandas as pd

from benchmarks.fuzz_corpus import READERS, write_corpus
from benchmarks.fuzz_worker import MOST_BYTES, damaged_file

MOST_SECONDS = 10.0
ALLOWED = ("read", "read, no time series", "ReadError", "NotATimeSeries", "MetadataError")


class Worker:
    """The reading process; started anew when it crashed or hung."""

    def __init__(self, corpus: Path, folder: Path) -> None:
        self.command = [sys.executable, "-m", "benchmarks.fuzz_worker", str(corpus), str(folder)]
        self.process: subprocess.Popen[str] | None = None

    def ask(self, reader: str, number: int) -> tuple[str, str, float, float]:
        """Outcome, sentence, seconds and peak memory [MiB] of one file."""
        # asked again, lest a busy machine looks like a hang
        answer = self._asked(reader, number) or self._asked(reader, number)
        if answer is None:
            return "hang", "", MOST_SECONDS, 0.0
        return ("crash", answer, 0.0, 0.0) if answer.startswith("exit") else tuple(json.loads(answer))

    def _asked(self, reader: str, number: int) -> str | None:
        """The answer as it came, None when it took too long."""
        process = self._running()
        process.stdin.write(f"{reader} {number}\n")
        process.stdin.flush()
        answer = self._answer(MOST_SECONDS)
        if not answer:
            process.kill()
            answer = None if answer is None else f"exit code {process.wait()}"
            process.wait()
            process.stdin.close()
            process.stdout.close()
            self.process = None
        return answer

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None:
            pipe = subprocess.PIPE
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
            self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, text=True, env=environment)
            if self._answer(600.0) != "ready\n":
                raise RuntimeError("the reading process did not start")
        return self.process

    def _answer(self, seconds: float) -> str | None:
        """A line, empty when the process has ended, None when it took too long."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            return self.process.stdout.readline() if selector.select(seconds) else None


def run(number: int | None = None, readers: tuple[str, ...] | None = None) -> pd.DataFrame:
    """A row a reader: how many files ended how, the slowest, the largest memory; what is not allowed is printed.

    The number of files a reader comes from FUZZ_FILES, the readers from FUZZ_READERS, where not given; FUZZ_WORKERS
    processes share them.
    """
    number = number or int(os.environ.get("FUZZ_FILES", "10000"))
    readers = readers or tuple(os.environ.get("FUZZ_READERS", " ".join(READERS)).split())
    real = os.environ.get("ATOMDIFFUSER_REAL_DATA")
    rows = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        folder = Path(name)
        seeds = write_corpus(folder / "corpus", Path(real) if real else None)
        listed = folder / "corpus.json"
        listed.write_text(json.dumps({reader: [str(p) for p in paths] for reader, paths in seeds.items()}))
        workers = []
        for k in range(int(os.environ.get("FUZZ_WORKERS", "1"))):
            (folder / str(k)).mkdir()
            workers.append(Worker(listed, folder / str(k)))
        for reader in readers:
            rows.append(_fuzz(workers, reader, number))
        for worker in workers:
            worker.close()
    return pd.DataFrame(rows)


def _fuzz(workers: list[Worker], reader: str, number: int) -> dict[str, object]:
    outcomes: Counter[str] = Counter()
    slowest = largest = total = 0.0

    def share(which: int) -> list[tuple[str, float, float]]:
        found = []
        for k in range(which, number, len(workers)):
            outcome, sentence, seconds, peak = workers[which].ask(reader, k)
            found.append((outcome, seconds, peak))
            if k % 1000 == 999:
                print(f"{reader}: {k + 1} of {number}", flush=True)
            if outcome not in ALLOWED or peak > MOST_BYTES / 2**20:
                print(f"{reader} {k}: {outcome} ({seconds:.1f} s, {peak:.0f} MiB) {sentence}", flush=True)
        return found

    with ThreadPoolExecutor(len(workers)) as pool:
        for outcome, seconds, peak in chain.from_iterable(pool.map(share, range(len(workers)))):
            outcomes[outcome] += 1
            slowest, largest, total = max(slowest, seconds), max(largest, peak), total + seconds
    others = sum(n for o, n in outcomes.items() if o not in ALLOWED)
    return {
        "reader": reader,
        "files": number,
        **{name: outcomes[name] for name in ALLOWED},
        "crashes": outcomes["crash"],
        "hangs": outcomes["hang"],
        "others": others - outcomes["crash"] - outcomes["hang"],
        "mean_ms": 1000 * total / number,
        "slowest_s": slowest,
        "most_MiB": largest,
        "reached": others == 0 and largest <= MOST_BYTES / 2**20,
    }


if __name__ == "__main__":
    reader_name, index, output = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        known = os.environ.get("ATOMDIFFUSER_REAL_DATA")
        kept = write_corpus(Path(temporary), Path(known) if known else None)
        Path(output).write_bytes(damaged_file(reader_name, int(index), kept[reader_name], Path(temporary)).read_bytes())

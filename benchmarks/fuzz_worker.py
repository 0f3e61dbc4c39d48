"""One process that reads damaged files on demand: what it is told on stdin, it answers on stdout, a line a file."""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import sys
import time
from pathlib import Path

from benchmarks.fuzz_corpus import fields_of
from benchmarks.fuzz_mutations import mutate

MOST_BYTES = 2**30
SEED = 20261125


def damaged_file(reader: str, number: int, seeds: list[Path], folder: Path) -> Path:
    """The file of that number, the same every time, under a name that ends as its seed's does."""
    chance = random.Random(f"{SEED} {reader} {number}")
    source = chance.choice(seeds)
    data = source.read_bytes()
    other = chance.choice(seeds).read_bytes()
    path = folder / f"damaged_1{source.suffix}"
    path.unlink(missing_ok=True)  # a new file: what one of HDF5 left open would be read in place of the next
    path.write_bytes(mutate(data, fields_of(reader, data), other, chance))
    return path


def read_everything(path: Path) -> str:
    """What the workflow reads of a raw file: its signals, and of each time series metadata and all frames."""
    from atomdiffuser.io.readers import inspect, read_series
    from atomdiffuser.stages.convert import BATCH_BYTES, _read

    outcome = "read, no time series"
    for signal in inspect(path):
        if signal.is_time_series:
            series = read_series(path, signal=signal.index)
            size = max(1, BATCH_BYTES // max(1, series.frame_shape[0] * series.frame_shape[1] * 8))
            for start in range(0, series.n_frames, size):
                _read(series, start, start + size, path)
            outcome = "read"
    return outcome


def outcome_of(path: Path) -> tuple[str, str]:
    """How reading ended, and the sentence where it was refused; what is no error of our own is `strange`."""
    from atomdiffuser.errors import AtomDiffuserError

    try:
        return read_everything(path), ""
    except AtomDiffuserError as error:
        text = str(error)
        if "MemoryError" in text or isinstance(error.__cause__, MemoryError):
            return "out of memory", text
        named = path.name in text or "session.yaml" in text
        return (type(error).__name__ if named and "\n" not in text else "strange sentence"), text
    except MemoryError as error:
        return "out of memory", repr(error)
    except BaseException as error:
        return f"strange {type(error).__name__}", str(error)


def main(corpus: Path, folder: Path) -> None:
    """Answer `reader number` lines; the address space is what is used now and a gigabyte."""
    seeds = {reader: [Path(p) for p in paths] for reader, paths in json.loads(corpus.read_text()).items()}
    for paths in seeds.values():
        for path in paths:
            outcome_of(path)  # what readers import at first use
    gc.collect()
    gc.freeze()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
    print("ready", flush=True)
    for line in sys.stdin:
        reader, number = line.split()
        path = damaged_file(reader, int(number), seeds[reader], folder)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        started = time.monotonic()
        outcome, sentence = outcome_of(path)
        seconds = time.monotonic() - started
        peak = next(int(x.split()[1]) for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
        print(json.dumps([outcome, sentence, seconds, peak / 1024]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""How many of mutmut's mutants the tests kill, by module: `python -m benchmarks.mutants` after `mutmut run`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

LEAST_PERCENT = 85.0
SURVIVED = 0  # exit code of the tests
NOT_RUN = None


def main(folder: Path = Path("mutants")) -> int:
    """Print a line per module and one for all; 1 when too few were killed, or not all were tried."""
    total = killed = open_ = 0
    for path in sorted(folder.rglob("*.py.meta")):
        codes = list(json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"].values())
        if not codes:
            continue
        dead = sum(code not in (SURVIVED, NOT_RUN) for code in codes)
        total, killed, open_ = total + len(codes), killed + dead, open_ + codes.count(NOT_RUN)
        name = path.relative_to(folder).with_suffix("")
        print(f"{name}: {dead} of {len(codes)} killed, {100 * dead / len(codes):.1f} %")
    percent = 100 * killed / max(total, 1)
    print(f"all: {killed} of {total} killed, {percent:.1f} % (at least {LEAST_PERCENT:g} %); {open_} not tried")
    return int(percent < LEAST_PERCENT or open_ > 0 or total == 0)


if __name__ == "__main__":
    sys.exit(main())

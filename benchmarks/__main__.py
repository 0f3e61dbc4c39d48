"""Run the benchmarks, all or those named: `python -m benchmarks [NAME …]`.

Tables are printed and kept in artefacts/benchmarks/.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks import damage_truth, demo_truth, drift_bound, fuzz, kill_stages, pair_drift, report_pages, scale

KEPT = Path("artefacts/benchmarks")


def demo() -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        table = demo_truth.run(Path(folder))
    print(f"demonstration session, written and analysed in {table.attrs['seconds']:.0f} s")
    return table


BENCHMARKS = {
    "demo": demo,
    "pairs": pair_drift.run,
    "drift-bound": drift_bound.run,
    "damage": damage_truth.run,
    "report": report_pages.run,
    "kill": kill_stages.run,
    "fuzz": fuzz.run,
    "scale": scale.run,
}
ON_REQUEST = ("kill", "drift-bound", "fuzz", "scale")  # these take their time


def main(names: list[str]) -> int:
    unknown = [n for n in names if n not in BENCHMARKS]
    if unknown:
        print(f"unknown benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    missed = 0
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in names or [n for n in BENCHMARKS if n not in ON_REQUEST]:
        table = BENCHMARKS[name]()
        with pd.option_context(
            "display.width", 250, "display.max_columns", None, "display.float_format", "{:.4g}".format
        ):
            print(f"\n{name}\n{table.to_string(index=False)}\n")
        table.to_csv(KEPT / f"{name}.csv", index=False)
        if name == "demo":
            for column, limit in demo_truth.LIMITS.items():
                worst = table[column].max()
                missed += not worst <= limit
                print(f"{'reached' if worst <= limit else 'MISSED '}  {column}: {worst:.4g} (limit {limit:g})")
        if "reached" in table:
            missed += int((~table["reached"]).sum())
        if name == "damage":
            short = damage_truth.missed(table)
            missed += len(short)
            print("\n".join(f"MISSED   {line}" for line in short) or "reached  every number")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

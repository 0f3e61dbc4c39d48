"""Snakemake as `atomdiffuser run` starts it: Ctrl-C ends it in order, also while it starts, and shows no traceback."""

from __future__ import annotations

import sys

from atomdiffuser.interrupts import end_run_in_order, leave_interrupts, take_interrupts


def run() -> None:
    """Run Snakemake with the arguments of this process."""
    sys.argv[0] = "snakemake"  # its usage names it
    end_run_in_order()
    take_interrupts()
    from snakemake.cli import main

    try:
        main()
    except SystemExit:
        leave_interrupts()
        raise


if __name__ == "__main__":
    run()

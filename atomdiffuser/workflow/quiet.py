"""What Snakemake says on the terminal while `quiet` holds: its log file keeps everything."""

from __future__ import annotations

import logging
import re

BOOKKEEPING = re.compile(
    r"Select jobs to execute|Execute \d+ jobs|Activating conda environment|Using shell|Assuming unrestricted"
    r"|Exiting because a job execution failed"
)
STREAM_HANDLER = "DefaultStreamHandler"


def is_news(record: logging.LogRecord) -> bool:
    """Whether a user wants to read it: no bookkeeping, and no second account of a failed job, which said why itself."""
    return getattr(record, "exception", None) != "RuleException" and not BOOKKEEPING.match(record.getMessage())


def calm(logger: logging.Logger, *, dry_run: bool) -> None:
    """Leave bookkeeping out of what Snakemake's logger prints, if its own `quiet` leaves out rules.

    A dry run is asked for the very list that `quiet` leaves out, so there `quiet` no longer holds.
    """
    for handler in logger.handlers:
        quiet = next((f.quiet for f in handler.filters if hasattr(f, "quiet")), ())
        if handler.name != STREAM_HANDLER or "RULES" not in {q.name for q in quiet}:
            continue
        if dry_run:
            for f in (*handler.filters, handler.formatter):
                f.quiet = set()
        else:
            handler.addFilter(is_news)

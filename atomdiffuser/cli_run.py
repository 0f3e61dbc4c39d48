"""How a subcommand runs: threads, log file, progress bar, status file, and errors in one sentence."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

import rich_click as click

from atomdiffuser.cli_options import PATH, set_threads
from atomdiffuser.cli_progress import IN_JOB, Progress, progress_of
from atomdiffuser.errors import AtomDiffuserError
from atomdiffuser.interrupts import ending_in_order, run_to_its_end
from atomdiffuser.io.locks import holding
from atomdiffuser.memory_limit import set_memory_limit

DEBUG = "ATOMDIFFUSER_DEBUG"


def fail(label: str, sentence: str) -> NoReturn:
    """End with one plain line on stderr, without the frame that usage errors get, and exit code 1."""
    click.echo(f"{label}: {sentence}", err=True)
    raise click.exceptions.Exit(1)


def stage_options(function: Callable) -> Callable:
    """Decorator: the options that every stage has; the function receives them as `run`."""

    def call(
        log: Path | None, status: Path | None, threads: int | None, memory_limit: str | None, **arguments: Any
    ) -> Any:
        run = {"log": log, "status": status, "threads": threads, "memory_limit": memory_limit}
        return function(run=run, **arguments)

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    call.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in (
        click.option("--threads", type=click.IntRange(min=1), help="Processor threads to use; default: all."),
        click.option("--memory-limit", metavar="SIZE", help="Memory to keep to, such as “2 GB”; default: no limit."),
        click.option("--status", type=PATH, help="status.json of the series, where a failure is recorded."),
        click.option("--log", type=PATH, help="File for warnings, and for the traceback of an unexpected error."),
    ):
        call = option(call)
    return call


def run_stage(
    stage: str,
    work: Callable[[Progress], None],
    *,
    log: Path | None = None,
    status: Path | None = None,
    threads: int | None = None,
    memory_limit: str | None = None,
    **identity: str,
) -> None:
    """Run one stage; what goes wrong becomes one sentence on stderr, and in the status file where there is one.

    `identity` is what the stage knows of its series, see `Record`. A job that a killed run left behind may still be at
    the same work: the stage waits for it, so that each store has one writer at a time.
    """
    set_threads(threads)
    record = None
    label = stage
    alone: Any = nullcontext()
    if status is not None:
        from atomdiffuser.workflow.record import Record

        record = Record(status, stage, **identity)
        label = f"{stage} {status.absolute().parent.name}"
        waits = f"{label}: waits for the same job of a run that was stopped"
        alone = holding(status.parent / "logs" / f".{stage}.lock", lambda: click.echo(waits, err=True))
    started = time.monotonic()
    with (
        logging_to(log),
        ending_in_order(),
        one_sentence(label, log=log, on_failure=record.fail if record else None),
        alone,
    ):
        if record is not None:
            record.begin()
        set_memory_limit(memory_limit)
        with progress_of(stage, label) as progress:
            work(progress)
    click.echo(f"{label}: done in {time.monotonic() - started:.1f} s", err=True)


@contextmanager
def one_sentence(
    label: str, *, log: Path | None = None, on_failure: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Turn exceptions into one sentence and exit code 1; the traceback goes to the log, or to stderr when debugging."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit):
        raise
    except KeyboardInterrupt:
        if os.environ.get(IN_JOB):  # a group of processes is often told twice: the second must not disturb the end
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        fail(label, "interrupted")
    except Exception as error:
        logging.getLogger("atomdiffuser").error("%s failed", label, exc_info=True)
        if os.environ.get(DEBUG):
            raise
        sentence = describe(error, log)
        if on_failure is not None:
            with suppress(OSError):  # a full disk has no room for the status either
                on_failure(sentence)
        fail(label, sentence)


def describe(error: BaseException, log: Path | None = None) -> str:
    """One sentence for an exception, without line breaks."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))  # a file name may hold anything
    if isinstance(error, AtomDiffuserError):
        return text
    if isinstance(error, MemoryError):
        return "not enough memory; free some, or run fewer jobs at a time"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{f': {error.filename}' if error.filename else ''}; make room, then run it again"
    where = f"see {log}" if log is not None else f"set {DEBUG}=1 for the traceback"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''} ({where})"
    return f"unexpected {type(error).__name__}{f': {text}' if text else ''} ({where})"


@contextmanager
def logging_to(path: Path | None) -> Iterator[None]:
    """Send log messages and warnings to a file; without one they are dropped, unless debugging."""
    root = logging.getLogger()
    if path is None and os.environ.get(DEBUG):
        yield
        return
    if path is None:
        handler: logging.Handler = logging.NullHandler()
    else:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handler = logging.FileHandler(path, mode="w", encoding="utf-8")
        except OSError:  # what keeps a log from being written keeps the results too, and then says so
            handler = logging.NullHandler()
        handler.handleError = lambda record: None  # type: ignore[method-assign]  # no traceback for a full disk
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        with suppress(OSError):
            handler.close()


def run_workflow(
    session: Path, *, results: Path | None = None, cores: str = "all", extra: Sequence[str] = (), quiet: bool = False
) -> int:
    """Run the workflow, of the checkout or of the installed package, on a session; returns Snakemake's exit code.

    `extra` are further arguments for Snakemake; its `--config` is joined with what names the session. With `quiet`
    everything goes to stderr.
    """
    from atomdiffuser.workflow.package_path import find_snakefile

    snakefile = find_snakefile()
    if snakefile is None:
        fail("run", "this installation has no workflow; install the wheel, or run this from a checkout of AtomDiffuser")
    options, given = split_config(extra)
    config = [f"session={session.absolute()}", *([f"results={results.absolute()}"] if results else []), *given]
    # --config takes all that follows, so options of the caller go before it
    command = [
        sys.executable, "-m", "atomdiffuser.workflow.snakemake_process", "--snakefile", str(snakefile),
        "--cores", cores, *options, "--config", *config,
    ]  # fmt: skip
    code = run_to_its_end(command, **({"stdout": sys.stderr} if quiet else {}))
    page = (results or session / "results").absolute() / "summary.html"
    planned = {"-n", "--dry-run", "--dryrun"} & set(options)
    if code == 0 and page.is_file() and not quiet and not planned:
        click.echo(f"Open {page.as_uri()}")  # also when nothing was left to do, and below all that Snakemake says
    return code


def split_config(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Snakemake's arguments without its `--config`, and the KEY=VALUE entries of that: it counts once only.

    >>> split_config(["--dry-run", "--config", "damage={'grid': [4, 4]}", "--forceall"])
    (['--dry-run', '--forceall'], ["damage={'grid': [4, 4]}"])
    """
    options: list[str] = []
    config: list[str] = []
    taking = False
    for argument in arguments:
        if argument in ("--config", "-C"):
            taking = True
        elif argument.startswith("--config="):
            config.append(argument.removeprefix("--config="))
        elif taking and not argument.startswith("-"):
            config.append(argument)
        else:
            taking = False
            options.append(argument)
    return options, config


def write_demo(session: Path, *, seed: int) -> None:
    """Write the demo session, unless the same code wrote it there before."""
    from atomdiffuser.workflow.code_hash import code_hash

    stamp = session.with_name(f"{session.name}.stamp")
    made_by = f"{code_hash('atomdiffuser.stages.demo_session')} {seed}"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == made_by and session.is_dir():
        return
    with logging_to(None), one_sentence("demo"):
        from atomdiffuser.stages.demo_session import write_demo_session

        session.mkdir(parents=True, exist_ok=True)
        write_demo_session(session, seed=seed)
        stamp.write_text(made_by, encoding="utf-8")

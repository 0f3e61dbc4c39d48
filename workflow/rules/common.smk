# Configuration, the session's series, and what all rules share. Nothing here runs a job.

import hashlib
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

if os.path.isdir(f"{HERE}/atomdiffuser"):
    sys.path.insert(0, HERE)  # this checkout's package, whether or not it is installed

# Where another workflow uses this one as a module, working folder, target and closing words are the other's.
IS_MODULE = not workflow.modifier.is_main_snakefile()

try:
    from atomdiffuser.interrupts import end_run_in_order, run_undisturbed
    from atomdiffuser.cli_options import settings_flags
    from atomdiffuser.cli_progress import IN_JOB
    from atomdiffuser.cli_run import describe
    from atomdiffuser.errors import AtomDiffuserError
    from atomdiffuser.io.discovery import discover
    from atomdiffuser.io.session_file import DAMAGE_KEYS
    from atomdiffuser.memory_limit import parse_size
    from atomdiffuser.workflow.closing import closing_text, run_command, summary_command
    from atomdiffuser.workflow.code_hash import code_hash, weights_fingerprint
    from atomdiffuser.workflow.config_file import read_config
    from atomdiffuser.workflow.links import refuse_links
    from atomdiffuser.workflow.package_path import package_path
    from atomdiffuser.workflow.quiet import calm
    from atomdiffuser.workflow.run_lock import claim
    from atomdiffuser.workflow.scheduling import end_without_waiting_for_itself, look_once_a_second
    from atomdiffuser.workflow.series_list import (
        CACHE,
        LIST,
        LOG,
        read_series_list,
        write_series_list,
    )
    from atomdiffuser.workflow.session import raw_values, session_folders
    from atomdiffuser.workflow.warm_job import ADDRESS
    from atomdiffuser.workflow.warm_process import start_warm_process
except ModuleNotFoundError as error:
    sys.exit(
        f"AtomDiffuser: Snakemake's own environment has no {error.name}; run `make setup` in the checkout "
        "and use .venv/bin/snakemake, or `pip install` atomdiffuser beside Snakemake"
    )

calm(logger, dry_run=workflow.output_settings.dryrun)
if workflow.is_main_process and not IS_MODULE:
    end_run_in_order()
    look_once_a_second()
    end_without_waiting_for_itself()

# One line for whoever made a slip, before any job and without a traceback.
try:
    config.update(raw_values(workflow.config_settings.config_args, ("session", "results")))
    SETTINGS = read_config(config)
    WEIGHTS = {stage: weights_fingerprint(getattr(SETTINGS, stage).weights) for stage in ("register", "decay")}
    started_in = Path(workflow.workdir_init)
    FOLDERS = session_folders(config, started_in, directory=started_in if IS_MODULE else workflow.overwrite_workdir)
    SERIES_LIST = FOLDERS.results / LIST
    if workflow.is_main_process:
        refuse_links(FOLDERS)
        if not workflow.output_settings.dryrun and "--unlock" not in sys.argv:
            claim(FOLDERS)
        if not (FOLDERS.results / CACHE).exists():
            print(f"First look at {FOLDERS.session}: every file is read once", file=sys.stderr)
        ENTRIES = discover(
            FOLDERS.session,
            results=FOLDERS.results,
            cache=FOLDERS.results / CACHE,
        )
        refuse_links(FOLDERS, [e.series_id for e in ENTRIES])
        write_series_list(SERIES_LIST, ENTRIES)
    else:  # a job of a run, perhaps on another machine: the list is made
        ENTRIES = read_series_list(SERIES_LIST)
except (AtomDiffuserError, OSError) as error:
    sys.exit(f"AtomDiffuser: {describe(error)}")

# What could not be read gets a job too, which fails with the reason: so it shows, and is tried again by the next run.
SERIES = {e.series_id: e for e in ENTRIES if e.state != "skipped"}

if not ENTRIES:
    sys.exit(f"AtomDiffuser: no microscope files in {FOLDERS.session}; see README.md for the formats that are read")


wildcard_constraints:
    series="[A-Za-z0-9_-]+",


RESULTS = FOLDERS.prefix()
OF_SERIES = f"{RESULTS}{{series}}/"
SUMMARY_HTML = f"{RESULTS}summary.html"
SUMMARY_TABLE = f"{RESULTS}summary.csv"
SUMMARY_LOG = FOLDERS.relative(FOLDERS.results / LOG)
SAMPLES_TABLE = f"{RESULTS}samples.csv"
COMPARISON_TABLE = f"{RESULTS}comparison.csv"

FRAMES = f"{OF_SERIES}frames.ome.zarr/zarr.json"
TRAJECTORY = f"{OF_SERIES}trajectory.parquet"
DECAY = f"{OF_SERIES}decay.zarr/zarr.json"
STATUS = f"{OF_SERIES}status.json"

FLAGS = {stage: settings_flags(settings) for stage, settings in vars(SETTINGS).items()}
CODE = {stage: code_hash(f"atomdiffuser.stages.{stage}") for stage in (*FLAGS, "summary")}
MEMORY_LIMIT = shlex.join(["--memory-limit", config["memory_limit"]]) if config.get("memory_limit") else ""
DASK_SCHEDULER = shlex.join(["--dask-scheduler", config["dask_scheduler"]]) if config.get("dask_scheduler") else ""
CONFIG_HASH = hashlib.sha256(json.dumps(FLAGS, sort_keys=True).encode()).hexdigest()[:16]
RUN_COMMAND = run_command(FOLDERS)
SUMMARY_COMMAND = summary_command(FOLDERS, FLAGS["report"])


def raw_files(wildcards):
    """Paths of a series' raw files as its job sees them."""
    entry = SERIES[wildcards.series]
    paths = (FOLDERS.relative(FOLDERS.session / source) for source in entry.sources)
    return [f"./{path}" if path.startswith("-") else path for path in paths]


def trackable_raw_files(wildcards):
    """Those that Snakemake can list as inputs: it would take {braces} and <angles> in a name for its own, wait for what
    a dangling link names, and open a pipe. The job says what is wrong with such files.
    """
    there = [os.path.isfile(p) or os.path.isdir(p) for p in (FOLDERS.working / path for path in raw_files(wildcards))]
    return [p for p, is_there in zip(raw_files(wildcards), there) if is_there and not set("{<") & set(p)]


def names_of_series(wildcards):
    """Arguments that say which series this is; a changed fingerprint means changed contents."""
    entry = SERIES[wildcards.series]
    arguments = {"--series-id": entry.series_id, "--name": entry.name}
    if entry.signal is not None:
        arguments["--signal"] = str(entry.signal)
    overrides = {k: v for k, v in entry.overrides.items() if k not in DAMAGE_KEYS}
    if overrides:
        arguments["--overrides"] = json.dumps(overrides, sort_keys=True, ensure_ascii=False)
    if entry.fingerprint:
        arguments["--fingerprint"] = entry.fingerprint
    return [text for pair in arguments.items() for text in pair]


def drift_of_other_channel(wildcards):
    """The trajectory that a channel takes over from another of its acquisition; none when it measures its own."""
    other = SERIES[wildcards.series].drift_from
    return [TRAJECTORY.format(series=other)] if other and SETTINGS.register.channels == "shared" else []


def damage_options(wildcards):
    """Arguments that say what session.yaml knows of a series' regions, probe and current."""
    overrides = SERIES[wildcards.series].overrides
    options = {k: overrides[k] for k in DAMAGE_KEYS if k in overrides}
    if not options:
        return []
    session = FOLDERS.relative(FOLDERS.session) or "."
    return ["--options", json.dumps(options, sort_keys=True, ensure_ascii=False), "--session", session]


def region_files(wildcards):
    """Files of a series' regions that are there; the job says what is wrong with the others."""
    given = SERIES[wildcards.series].overrides.get("regions", ())
    paths = [FOLDERS.session / region["file"] for region in given if "file" in region]
    return [FOLDERS.relative(path) for path in paths if path.is_file() and not set("{<") & set(str(path))]


def names_of_report(wildcards):
    """Arguments that say which series the page is about."""
    entry = SERIES[wildcards.series]
    return ["--series-id", entry.series_id, "--name", entry.name]


def gpus(stage):
    """GPUs that a job of this stage takes: with the profile's `gpu: 1`, one job at a time. None where the workers of a
    cluster compute the maps.
    """
    if stage == "decay" and config.get("dask_scheduler"):
        return 0
    device = getattr(SETTINGS, stage).device
    return int(device == "cuda" or (device == "auto" and shutil.which("nvidia-smi") is not None))


def more_each_attempt(amount):
    """Memory [MB] or time [min] of a job; where a job is tried again (`retries`), it may have run out of either."""
    return lambda wildcards, attempt: amount * attempt


def memory_mb(amount):
    """Memory of a job [MB], no more than each is held to."""
    limit = config.get("memory_limit")
    return more_each_attempt(min(amount, -(-parse_size(limit) // 10**6)) if limit else amount)


def up_to(threads):
    """Threads of a job, leaving half of the cores to other series; on a cluster, all."""
    cores = workflow.resource_settings.cores
    return threads if cores is None else max(1, min(threads, cores // 2))


# A job finds this very package also in a conda environment, for which Snakemake unsets PYTHONPATH, and without one the
# same Python that runs Snakemake.
PACKAGE_PATH = str(package_path())
prepare = f"set -euo pipefail; export PYTHONPATH={shlex.quote(PACKAGE_PATH)} {IN_JOB}=1; "
if "conda" not in {str(m) for m in workflow.deployment_settings.deployment_method}:
    prepare += f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH; "
    # it runs the same Python as the jobs; jobs of a cluster have a Snakemake of their own, which starts none
    if workflow.is_main_process and not workflow.output_settings.dryrun:
        prepare += f"export {ADDRESS}={start_warm_process(PACKAGE_PATH)}; "
# A job takes Ctrl-C when it is ready to end in order: one that falls into the start of Python would show a traceback.
prepare += "if env --block-signal=INT true 2>/dev/null; " 'then python() { env --block-signal=INT python "$@"; }; fi; '
shell.prefix(prepare.replace("{", "{{").replace("}", "}}"))


def close(failed):
    """Make the summary where its rule could not, and say how it went; once, and not in the jobs of a cluster."""
    if not workflow.is_main_process:
        return
    if failed:
        environment = {**os.environ, "PYTHONPATH": PACKAGE_PATH}
        run_undisturbed(SUMMARY_COMMAND, cwd=FOLDERS.working, env=environment)
    print(closing_text(FOLDERS, ENTRIES), file=sys.stderr)


onsuccess:
    close(failed=False)


onerror:
    # The rule `summary` waits for every series; the page must show those that failed. It is made again by the rule as
    # soon as they succeed, because their reports are newer then, or when they are gone, because the list is newer.
    close(failed=True)

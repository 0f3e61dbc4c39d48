"""The `atomdiffuser` command: one subcommand per stage, thin, each importing its stage only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from atomdiffuser._version import __version__
from atomdiffuser.cli_export import completion, export
from atomdiffuser.cli_options import INPUT, INPUT_FILE, INPUT_FOLDER, PATH, STORE, cluster_option, settings_options
from atomdiffuser.cli_run import run_stage, stage_options
from atomdiffuser.cli_train import evaluate, train
from atomdiffuser.config import (
    AlignSettings,
    ConvertSettings,
    DamageSettings,
    DecaySettings,
    RegisterSettings,
    ReportSettings,
)

EXIT_CODES = """
Exit codes: 0 all went well; 1 something failed, said in one line (of `run`: at least one series failed, the others are
analysed); 2 the command was not understood; 130 interrupted. ATOMDIFFUSER_DEBUG=1 shows tracebacks.
"""
STAGES = ["convert", "register", "decay", "damage", "align", "report", "summary"]
GROUPS = [
    {"name": "Start here", "commands": ["demo", "run", "info", "export", "simulate"]},
    {"name": "Stages, in order", "commands": STAGES},
    {"name": "The network", "commands": ["train", "evaluate"]},
    {"name": "This command itself", "commands": ["completion"]},
]
click.rich_click.COMMAND_GROUPS = {"*": GROUPS}


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="atomdiffuser")
def main() -> None:
    """Separates beam damage from drift in STEM time series.

    Start with `atomdiffuser demo`, then `atomdiffuser run SESSION` with a folder of your own raw files.
    """


for command in (train, evaluate, export, completion):
    main.add_command(command)


@main.command()
@click.argument("raw", nargs=-1, required=True, type=PATH)
@click.argument("frames", type=STORE)
@click.option("--series-id", help="Slug that names the series; default: the name of the folder of FRAMES.")
@click.option("--name", help="Name for display; default: the raw file's.")
@click.option("--signal", help="Number or title of the signal, in a file that holds several.")
@click.option("--overrides", default="{}", help="Metadata that replaces what the file says, as JSON.")
@click.option("--fingerprint", help="Content hash of the raw files, where it is known already.")
@settings_options(ConvertSettings)
@stage_options
def convert(
    raw: tuple[Path, ...], frames: Path, overrides: str, settings: ConvertSettings, run: Any, **names: Any
) -> None:
    """RAW microscope files → FRAMES (frames.ome.zarr).

    RAW is one multi-frame file, or the single-frame files of one series.
    """
    series_id = names["series_id"] or frames.absolute().parent.name
    name = names["name"] or raw[0].stem

    def work(progress: Any) -> None:
        from atomdiffuser.io._lean_dask import import_dask
        from atomdiffuser.stages.convert import convert as stage

        import_dask()
        stage(
            list(raw), frames, settings, series_id=series_id, name=name, signal=_signal(names["signal"]),
            overrides=_parse_json(overrides), fingerprint=names["fingerprint"], progress=progress,
        )  # fmt: skip

    run_stage("convert", work, name=name, source=raw[0].name, fingerprint=names["fingerprint"] or "", **run)


@main.command()
@click.argument("frames", type=STORE)
@click.argument("pairs", type=PATH)
@click.argument("trajectory", type=PATH)
@click.option("--drift-of", type=PATH, help="trajectory.parquet of another channel of the acquisition: take its drift.")
@settings_options(RegisterSettings)
@cluster_option
@stage_options
def register(
    frames: Path, pairs: Path, trajectory: Path, drift_of: Path | None, settings: RegisterSettings, run: Any,
    dask_scheduler: str | None,
) -> None:  # fmt: skip
    """FRAMES → drift of each pair (PAIRS) and of each frame (TRAJECTORY)."""

    def work(progress: Any) -> None:
        from atomdiffuser.stages.register import register as stage

        stage(
            frames, pairs, trajectory, settings, drift_of=drift_of, dask_scheduler=dask_scheduler, progress=progress
        )  # fmt: skip

    run_stage("register", work, **run)


@main.command()
@click.argument("frames", type=STORE)
@click.argument("trajectory", type=PATH)
@click.argument("decay", type=STORE)
@settings_options(DecaySettings)
@cluster_option
@stage_options
def decay(
    frames: Path, trajectory: Path, decay: Path, settings: DecaySettings, run: Any, dask_scheduler: str | None
) -> None:
    """FRAMES and TRAJECTORY → intensity and contrast maps (DECAY)."""

    def work(progress: Any) -> None:
        from atomdiffuser.stages.decay import decay as stage

        stage(frames, trajectory, decay, settings, dask_scheduler=dask_scheduler, progress=progress)

    run_stage("decay", work, **run)


@main.command()
@click.argument("frames", type=STORE)
@click.argument("trajectory", type=PATH)
@click.argument("decay", type=STORE)
@click.argument("table", type=PATH)
@click.argument("critical_fluence", type=PATH)
@click.option("--options", default="{}", help="What session.yaml says of regions, probe and current, as JSON.")
@click.option("--session", type=PATH, help="Session folder, which files of regions lie in; default: this folder.")
@settings_options(DamageSettings)
@stage_options
def damage(
    frames: Path, trajectory: Path, decay: Path, table: Path, critical_fluence: Path, settings: DamageSettings,
    run: Any, options: str, session: Path | None,
) -> None:  # fmt: skip
    """FRAMES, TRAJECTORY and DECAY → damage of each region (TABLE and its .csv) and CRITICAL_FLUENCE.

    Kinetics, Fourier spots, atomic columns, exposure and maps go beside CRITICAL_FLUENCE.
    """
    given = _parse_json(options, "--options")

    def work(progress: Any) -> None:
        from atomdiffuser.stages.damage import damage as stage

        stage(
            frames, trajectory, decay, table, critical_fluence, settings, options=given, session=session,
            progress=progress,
        )  # fmt: skip

    run_stage("damage", work, **run)


@main.command()
@click.argument("frames", type=STORE)
@click.argument("trajectory", type=PATH)
@click.argument("aligned", type=STORE)
@settings_options(AlignSettings)
@stage_options
def align(frames: Path, trajectory: Path, aligned: Path, settings: AlignSettings, run: Any) -> None:
    """FRAMES and TRAJECTORY → drift-corrected series (ALIGNED)."""

    def work(progress: Any) -> None:
        from atomdiffuser.stages.align import align as stage

        stage(frames, trajectory, aligned, settings, progress=progress)

    run_stage("align", work, **run)


@main.command()
@click.argument("results", type=INPUT_FOLDER)
@click.argument("output", type=PATH, required=False)
@click.option("--open", "open_it", is_flag=True, help="Open the page in the browser.")
@click.option("--series-id", help="Slug that names the series; default: the name of RESULTS.")
@click.option("--name", help="Name for display; default: the slug.")
@click.option("--command", help="Command to print in the page, by which it can be made again.")
@click.option("--config-hash", default="", help="Hash of all settings, for the status file.")
@settings_options(ReportSettings)
@stage_options
def report(results: Path, output: Path | None, open_it: bool, settings: ReportSettings, run: Any, **names: Any) -> None:
    """RESULTS, the folder of one series → a page to read (OUTPUT, or report.html in RESULTS).

    With --open and a page that is there already, as after `run`, the page is only opened; RESULTS may then also be the
    session or its results folder, for the summary of all series.
    """
    from atomdiffuser.cli_pages import finished_page, open_page

    if open_it and output is None and (page := finished_page(results)):
        open_page(page)
        return
    output = output or results / "report.html"
    series_id = names["series_id"] or results.absolute().name
    name = names["name"] or series_id
    status = run["status"] or results / "status.json"

    def work(progress: Any) -> None:
        from atomdiffuser.stages.report import report as stage

        stage(results, output, status, settings, series_id=series_id, name=name, command=names["command"])

    run_stage("report", work, name=name, config_hash=names["config_hash"], **{**run, "status": status})
    if open_it:
        open_page(output)


@main.command()
@click.argument("results", type=INPUT_FOLDER)
@click.argument("entries", type=INPUT_FILE)
@click.argument("html", type=PATH)
@click.argument("table", type=PATH)
@settings_options(ReportSettings)
@stage_options
def summary(results: Path, entries: Path, html: Path, table: Path, settings: ReportSettings, run: Any) -> None:
    """RESULTS of all series in ENTRIES → one page (HTML) and one TABLE."""

    def work(progress: Any) -> None:
        from atomdiffuser.stages.summary import summary as stage
        from atomdiffuser.workflow.series_list import read_series_list

        stage(results, read_series_list(entries), html, table, settings)

    run_stage("summary", work, **run)


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True})
@click.argument("session", type=INPUT_FOLDER)
@click.option("--results", type=PATH, help="Folder for the results; default: results/ inside SESSION.")
@click.option("--cores", default="all", show_default=True, help="Processor cores to use.")
@click.option("--open", "open_it", is_flag=True, help="Open the summary in the browser when all is done.")
@click.option("--json", "as_json", is_flag=True, help="Print how it went as JSON; all else goes to stderr.")
@click.argument("snakemake_args", nargs=-1, type=click.UNPROCESSED)
def run(
    session: Path, results: Path | None, cores: str, open_it: bool, as_json: bool, snakemake_args: tuple[str, ...]
) -> None:
    """Analyse every series in SESSION: runs the Snakemake workflow.

    Options that are not listed here go to Snakemake, such as --dry-run, --use-conda, --configfile mine.yaml or
    --config damage="{'grid': [4, 4]}". What follows `--` goes there too.
    """
    from atomdiffuser.cli_pages import open_page, print_outcome
    from atomdiffuser.cli_run import run_workflow

    code = run_workflow(session, results=results, cores=cores, extra=snakemake_args, quiet=as_json)
    folder = results or session / "results"
    if as_json:
        print_outcome(folder, code)
    if open_it and (folder / "summary.html").is_file():
        open_page(folder / "summary.html")
    raise SystemExit(code)


@main.command()
@click.argument("folder", type=PATH, default="atomdiffuser-demo")
@click.option("--seed", type=int, default=20250810, show_default=True, help="Seed of the simulated specimens.")
@click.option("--cores", default="all", show_default=True, help="Processor cores to use.")
@click.option("--open", "open_it", is_flag=True, help="Open the summary in the browser when all is done.")
def demo(folder: Path, seed: int, cores: str, open_it: bool) -> None:
    """Write a small session with known truth to FOLDER/session and analyse it."""
    from atomdiffuser.cli_pages import open_page
    from atomdiffuser.cli_run import run_workflow, write_demo

    write_demo(folder / "session", seed=seed)
    code = run_workflow(folder / "session", cores=cores)
    if open_it and code == 0:
        open_page(folder / "session" / "results" / "summary.html")
    raise SystemExit(code)


@main.command()
@click.argument("output", type=PATH)
@click.option("--specimen", default="SrTiO3", show_default=True, help="What to look at, such as SrTiO3 or Si.")
@click.option("--format", "file_format", type=click.Choice(["dm4", "emd", "folder"]), default="dm4", show_default=True)
@click.option("--truth", type=PATH, help="NPZ file for the exact drift and maps.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of specimen, drift, damage and noise.")
@click.option("--set", "options", multiple=True, metavar="NAME=VALUE", help="Any other option, such as n_frames=20.")
@click.option("--device", default="cpu", show_default=True, help="Where it is rendered.")
def simulate(output: Path, file_format: str, options: tuple[str, ...], **named: Any) -> None:
    """Simulate a series with known truth and write it to OUTPUT as a microscope would have."""
    from atomdiffuser.cli_run import logging_to, one_sentence

    with logging_to(None), one_sentence("simulate"):
        from atomdiffuser.stages.simulate import simulate as stage

        stage(output, format=file_format, **named, **dict(map(_assignment, options)))


@main.command()
@click.argument("file", type=INPUT)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(file: Path, as_json: bool) -> None:
    """Say what FILE is, and what is missing: raw file, session, results, frame store, maps or table."""
    from atomdiffuser.cli_info import print_info
    from atomdiffuser.cli_run import logging_to, one_sentence

    with logging_to(None), one_sentence("info"):
        print_info(file, as_json=as_json)


def _signal(text: str | None) -> int | str | None:
    """A signal's number or its title."""
    return int(text) if text and text.isdecimal() else text


def _assignment(text: str) -> tuple[str, Any]:
    """`shape=128,160` → ("shape", (128, 160)); what is no number, true or false stays text."""
    import json

    from atomdiffuser.errors import SettingsError

    name, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"--set {text!r} is not NAME=VALUE, such as n_frames=20")
    try:
        parsed = json.loads(f"[{value}]")
    except ValueError:
        return name, value
    return name, parsed[0] if len(parsed) == 1 else tuple(parsed)


def _parse_json(text: str, option: str = "--overrides") -> dict[str, Any]:
    import json

    from atomdiffuser.errors import SettingsError

    try:
        values = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{option}: {text!r} is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise SettingsError(f'{option}: {text!r} is not a JSON object, such as {{"probe_current_pA": 50}}')
    return values

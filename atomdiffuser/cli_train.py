"""The subcommands `train`, `evaluate maps` and `evaluate drift`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from atomdiffuser.cli_options import INPUT_FILE, PATH
from atomdiffuser.cli_progress import progress_of
from atomdiffuser.cli_run import fail
from atomdiffuser.errors import AtomDiffuserError

DEVICE = click.Choice(["auto", "cpu", "cuda"])


@click.command()
@click.option("--config", type=INPUT_FILE, help="File with presets; default: config/train.yaml beside the workflow.")
@click.option("--preset", default="small", show_default=True, help="Which of them.")
@click.option("--folder", type=PATH, default="artefacts/training", show_default=True,
              help="Receives log, checkpoints and weights; a run found there goes on.")  # fmt: skip
@click.option("--device", type=DEVICE, default="auto", show_default=True)
@click.option("--max-minutes", type=click.FloatRange(min=0), help="Stop after this time, with a checkpoint.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop after so many steps, with a checkpoint.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one setting of the preset.")
def train(config: Path | None, preset: str, folder: Path, changes: tuple[str, ...], **limits: Any) -> None:
    """Train the network on simulated pairs."""
    from atomdiffuser.training.__main__ import main
    from atomdiffuser.workflow.package_path import find_snakefile

    snakefile = find_snakefile()
    if config is None and snakefile is None:
        fail("train", "this installation has no config/train.yaml; give a file of presets with --config")
    config = config or snakefile.parent / "config" / "train.yaml"
    arguments = [preset, "--config", str(config), "--folder", str(folder)]
    for name, value in limits.items():
        if value is not None:
            arguments += ["--" + name.replace("_", "-"), str(value)]
    for change in changes:
        arguments += ["--set", change]
    with progress_of("train", f"train {preset}") as progress:
        code = main(arguments, progress=progress)
    if code == 1:
        raise click.exceptions.Exit(1)


@click.group()
def evaluate() -> None:
    """Judge the methods against simulated truth."""


@evaluate.command("maps")
@click.argument("folder", type=PATH)
@click.option("--weights", help="Name of shipped weights or a file; default: the shipped ones.")
@click.option("--baseline", "baselines", multiple=True, metavar="NAME=FILE", help="A trained baseline shown beside it.")
@click.option("--pairs", type=click.IntRange(min=1), default=4, show_default=True, help="Of each crystal and fluence.")
@click.option("--classical/--no-classical", default=True, show_default=True, help="Run local regression beside it.")
@click.option("--device", type=DEVICE, default="auto", show_default=True)
def evaluate_maps(
    folder: Path, weights: str | None, baselines: tuple[str, ...], pairs: int, classical: bool, device: str
) -> None:
    """Judge trained weights on simulated truth; writes a page with tables and figures into FOLDER."""
    from dataclasses import replace

    import torch

    from atomdiffuser.evaluation.benchmark import BenchmarkOptions
    from atomdiffuser.evaluation.evaluate import evaluate as run

    named = dict(b.partition("=")[::2] for b in baselines)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        run(
            weights, folder, baselines={k: Path(v) for k, v in named.items()}, classical=classical, device=chosen,
            options=replace(BenchmarkOptions(), pairs=pairs), report=lambda line: click.echo(line, err=True),
        )  # fmt: skip
    except AtomDiffuserError as error:
        fail("evaluate maps", str(error))
    click.echo(folder / "index.html")


@evaluate.command("drift")
@click.argument("folder", type=PATH)
@click.option("--seeds", type=click.IntRange(min=1), default=8, show_default=True, help="Simulated series a case.")
@click.option(
    "--specimen", "specimens", multiple=True, help="What is simulated; default: lattice, dumbbells, particle."
)
@click.option("--electrons", type=float, multiple=True, help="Electrons per pixel; default: 5, 20 and 200.")
@click.option(
    "--peers/--no-peers", default=True, show_default=True, help="Run the tools of the extra `peers` beside it."
)
def evaluate_drift(
    folder: Path, seeds: int, specimens: tuple[str, ...], electrons: tuple[float, ...], peers: bool
) -> None:
    """Compare drift of pairs with the physical limit and with other registration tools.

    Writes tables, figure and a page into FOLDER. `pip install "atomdiffuser[peers]"` brings the other tools.
    """
    from dataclasses import replace

    from atomdiffuser.evaluation.drift import DriftBenchmark
    from atomdiffuser.evaluation.drift_page import evaluate_drift as run

    changes = {"seeds": seeds}
    if specimens:
        changes["specimens"] = specimens
    if electrons:
        changes["electrons_per_px"] = electrons
    try:
        text = run(
            folder, replace(DriftBenchmark(), **changes), peers=peers, report=lambda line: click.echo(line, err=True)
        )
    except AtomDiffuserError as error:
        fail("evaluate drift", str(error))
    click.echo(text)
    click.echo(folder / "index.html")

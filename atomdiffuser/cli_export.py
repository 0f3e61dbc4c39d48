"""The subcommands `export` and `completion`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import rich_click as click

from atomdiffuser.cli_options import INPUT, PATH

SHELLS = ("bash", "zsh", "fish")


class FrameRange(click.ParamType):
    """`4-20` → (4, 20), `4` → (4, 4)."""

    name = "first-last"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", value.strip())
        if not found:
            self.fail(f"{value!r} is no range of frames; write 4-20, both ends included", param, ctx)
        return int(found[1]), int(found[2] or found[1])


@click.command()
@click.argument("source", type=INPUT)
@click.argument("output", type=PATH)
@click.option("--map", "map_name", default="contrast", show_default=True, help="Which map, when SOURCE is decay.zarr.")
@click.option("--frames", type=FrameRange(), help="First and last frame; default: all.")
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True, help="Of a movie.")
@click.option("--zoom", type=click.IntRange(min=1), help="Of a movie; default: large enough for the lettering.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
def export(source: Path, output: Path, **options: Any) -> None:
    """Write a stored series, map or table (SOURCE) for other programs; the suffix of OUTPUT says which.

    .tif (ImageJ, Fiji), .mrc, .mp4, .gif and .webp (with scale bar, time and fluence) for images, .csv for tables.
    """
    from atomdiffuser.cli_run import logging_to, one_sentence

    with logging_to(None), one_sentence("export"):
        from atomdiffuser.exports import export as write

        click.echo(write(source, output, **options))


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete this command's subcommands, options and paths.

    In bash: `eval "$(atomdiffuser completion bash)"` in ~/.bashrc; fish: `atomdiffuser completion fish >
    ~/.config/fish/completions/atomdiffuser.fish`.
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None  # the choice of shells allows those that click knows only
    click.echo(found(ctx.find_root().command, {}, "atomdiffuser", "_ATOMDIFFUSER_COMPLETE").source())

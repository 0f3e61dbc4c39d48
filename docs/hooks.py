"""Pages of the site that are made from the code and from files elsewhere, as MkDocs builds it.

Settings, session.yaml, tables and command line from what defines them; the tutorial from its notebook; changes and
contributing from the repository's own files.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
REPOSITORY_LINKS = {  # links of repository files → pages of the site
    "docs/design.md": "design.md",
    "docs/benchmarks.md": "benchmarks.md",
    "docs/reliability.md": "reliability.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
}


def on_config(config: Any) -> Any:
    """Put pages of the top folder that the navigation does not name, such as on reliability, after the benchmarks."""
    named = {page for entry in config.nav for page in entry.values() if isinstance(page, str)}
    after = next(i for i, entry in enumerate(config.nav) if "Benchmarks" in entry)
    for path in sorted((ROOT / "docs").glob("*.md"), reverse=True):
        if path.name not in named:
            heading = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            config.nav.insert(after + 1, {heading[1] if heading else path.stem: path.name})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    pages = {
        "reference/config.md": config_page(),
        "reference/session.md": session_page(),
        "reference/tables.md": tables_page(),
        "reference/cli.md": command_page(),
        "changes.md": repository_page("CHANGELOG.md"),
        "contributing.md": repository_page("CONTRIBUTING.md"),
    }
    tutorial, pictures = notebook_page(ROOT / "docs" / "tutorial.ipynb")
    pages["tutorial.md"] = tutorial
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for path, data in pictures.items():
        files.append(File.generated(config, path, content=data))
    return files


def config_page() -> str:
    """Every setting, from the classes that also make the schema and the command line flags."""
    from atomdiffuser.config import STAGES, stage_schema
    from atomdiffuser.workflow.config_file import KEYS, allowed_values

    lines = [
        "# Settings", "",
        "Every setting of `config/config.yaml`, by stage. Only what depends on a changed setting is computed again;",
        "keys that do not exist and values out of range are named before anything runs. Three ways to change one:",
        "[Choose regions](../howto/regions.md#the-grid); the flags of single stages in [Command line](cli.md).", "",
        "| key | meaning |", "|---|---|",
        *(f"| `{name}` | {_cell(text)} |" for name, text in KEYS.items()), "",
    ]  # fmt: skip
    for name, stage in STAGES.items():
        schema = stage_schema(stage)
        lines += [f"## {name}", "", schema["description"], ""]
        lines += ["| key | default | allowed | meaning |", "|---|---|---|---|"]
        for key, field in schema["properties"].items():
            default = ", ".join(map(str, field["default"])) if isinstance(field["default"], list) else field["default"]
            allowed = allowed_values(field) or field.get("type", "")
            lines.append(f"| `{key}` | `{default}` | {_cell(allowed)} | {_cell(field['description'])} |")
        lines.append("")
    return "\n".join(lines)


def session_page() -> str:
    """Every key of session.yaml, from its schema."""
    from atomdiffuser.io.session_file import session_schema

    properties = session_schema()["properties"]["defaults"]["properties"]
    lines = [
        "# session.yaml", "",
        "Lies in the session folder and says what the raw files do not. Everything in it is optional. `defaults` holds",
        "for every series; below `series`, keys are file names, display names or IDs, and win over `defaults`.", "",
        "| key | meaning |", "|---|---|",
        *(f"| `{key}` | {_cell(field['description'])} |" for key, field in properties.items()), "",
        "Each entry of `regions` has either a `file` or a `polygon` with a `name`:", "",
        "| key | meaning |", "|---|---|",
        *(
            f"| `{key}` | {_cell(field['description'])} |"
            for key, field in properties["regions"]["items"]["properties"].items()
        ), "",
        "A file `series.tsv`, if there is one, lists the series to analyse: a column `series`, further ones named like",
        "the keys above (and `conditions.<name>`), one series a line. What it does not list is skipped.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def tables_page() -> str:
    """Every column of every stored table, from the descriptions that are stored with them."""
    from atomdiffuser.io.tables import COLUMNS

    lines = [
        "# Tables", "",
        "Every column of the tables in `results/<series>/` and of the session, with the unit stored beside it.", "",
    ]  # fmt: skip
    for kind, columns in COLUMNS.items():
        lines += [f"## {kind}", "", "| column | unit | meaning |", "|---|---|---|"]
        lines += [f"| `{name}` | {_cell(unit)} | {_cell(text)} |" for name, (text, unit) in columns.items()]
        lines.append("")
    return "\n".join(lines)


def command_page() -> str:
    """Every subcommand with its arguments and options, from the command itself."""
    import click

    from atomdiffuser.cli import GROUPS, main

    lines = [
        "# Command line", "", " ".join((main.epilog or "").split()), "",
        "`atomdiffuser completion bash` (or `zsh`, `fish`) makes the shell complete commands and options.", "",
    ]  # fmt: skip
    names = [name for group in GROUPS for name in group["commands"]]
    todo = [((name,), main.commands[name]) for name in names]
    while todo:
        path, command = todo.pop(0)
        context = click.Context(command, info_name=" ".join(("atomdiffuser", *path)))
        arguments = " ".join(command.collect_usage_pieces(context))
        lines += [f"## {' '.join(path)}", "", "```text", f"atomdiffuser {' '.join(path)} {arguments}", "```", ""]
        lines += [*_paragraphs(command.help or ""), ""]
        options = [p for p in command.params if isinstance(p, click.Option)]
        if options:
            lines += ["| option | meaning |", "|---|---|"]
        for option in options:
            flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
            default = option.default if option.show_default and option.default is not None else None
            given = "" if default in (None, False, ()) else f" Default: `{default}`."
            lines.append(f"| {flags} | {_cell(option.help or '')}{given} |")
        lines.append("")
        if isinstance(command, click.Group):
            todo = [((*path, name), sub) for name, sub in command.commands.items()] + todo
    return "\n".join(lines)


def repository_page(name: str) -> str:
    """A file of the repository, its links led to pages of the site where there is one."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for target, page in REPOSITORY_LINKS.items():
        text = text.replace(f"]({target}", f"]({page}")
    return text


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook with its stored outputs as Markdown, and its pictures by path."""
    import nbformat
    from nbconvert import MarkdownExporter

    notebook = nbformat.read(path, as_version=4)
    names = "images/tutorial_{cell_index}_{index}{extension}"
    pictures = {"enabled": True, "output_filename_template": names}
    exporter = MarkdownExporter(config={"ExtractOutputPreprocessor": pictures})
    text, resources = exporter.from_notebook_node(notebook)
    note = f"!!! note\n    This page is the notebook `docs/{path.name}` of the repository, which the tests run.\n"
    first, _, rest = text.lstrip().partition("\n")
    return f"{first}\n\n{note}\n{rest}", dict(resources.get("outputs", {}))


def _paragraphs(text: str) -> list[str]:
    import inspect

    return inspect.cleandoc(text).splitlines()


def _cell(text: Any) -> str:
    return re.sub(r"([|\[\]<>])", r"\\\1", " ".join(str(text).split()))

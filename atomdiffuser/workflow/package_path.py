"""Where the Snakefile is, and the folder by which jobs find this very package.

A checkout has the Snakefile in its top folder; a wheel brings it, with rules, settings and environments, in
`atomdiffuser/workflow/shipped` (see setup.py).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from atomdiffuser.workflow.code_hash import PACKAGE

SHIPPED = PACKAGE / "workflow" / "shipped"
MARKS_OF_CHECKOUT = ("pyproject.toml", "Snakefile")


def find_snakefile(package: Path = PACKAGE) -> Path | None:
    """The checkout's Snakefile, or the one that the wheel brought; None when there is neither."""
    for folder in (package.parent, package / "workflow" / "shipped"):
        if (folder / "Snakefile").is_file():
            return folder / "Snakefile"
    return None


def package_path(package: Path = PACKAGE, cache: Path | None = None) -> Path:
    """A folder for PYTHONPATH that holds this package and no other.

    In a checkout that is its top folder. An installed package lies among packages built for another Python than that
    of a conda environment, so a link to it (or a copy, where links cannot be made) in the user's cache stands for it.

    Parameters
    ----------
    package
        Folder of the package.
    cache
        Where to keep the link; `$XDG_CACHE_HOME/atomdiffuser` or `~/.cache/atomdiffuser` when None.
    """
    if all((package.parent / name).is_file() for name in MARKS_OF_CHECKOUT):
        return package.parent
    import hashlib

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atomdiffuser"
    installed_at = hashlib.sha256(str(package).encode()).hexdigest()[:12]
    folder = (cache or home) / "package" / installed_at
    link = folder / package.name
    if link.is_symlink() and link.resolve() == package.resolve():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _replace(link, package)
    return folder


def _replace(link: Path, package: Path) -> None:
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        temporary.symlink_to(package, target_is_directory=True)
        os.replace(temporary, link)
    except OSError:
        temporary.unlink(missing_ok=True)
        shutil.copytree(package, link, dirs_exist_ok=True)

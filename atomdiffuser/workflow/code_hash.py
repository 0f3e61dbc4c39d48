"""Fingerprint of the code behind one stage, so that an edited or updated package recomputes what depends on it only."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

from atomdiffuser.errors import SettingsError

PACKAGE = Path(__file__).resolve().parents[1]
PASSED_ON_AS_FLAGS = ("config.py", "errors.py")  # settings arrive as parameters, messages change no result
RESOURCES = (".html", ".css", ".js", ".yml", ".yaml", ".safetensors")


def code_hash(module: str, package: Path = PACKAGE) -> str:
    """Hash of a module's source, of every package module it imports, directly or not, and of the files beside those.

    Parameters
    ----------
    module
        Dotted name, such as "atomdiffuser.stages.register".
    package
        Folder of the package that `module` belongs to.
    """
    digest = hashlib.sha256()
    for path in sorted(imported_files(module, package)):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def weights_fingerprint(weights: str) -> str:
    """Hash of the contents of a weights file; empty for shipped weights, which `code_hash` covers.

    Raises
    ------
    SettingsError
        When there is neither a file nor shipped weights of that name.
    """
    path = Path(weights)
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if (PACKAGE / "model" / "weights" / f"{weights}.safetensors").is_file():
        return ""
    raise SettingsError(f"weights: {weights!r} is no file and no name of shipped weights")


def imported_files(module: str, package: Path = PACKAGE) -> set[Path]:
    """Source files behind a module, imports inside functions included, and resource files in the same sub-packages."""
    found: set[Path] = set()
    todo = [module]
    while todo:
        path = _source(todo.pop(), package)
        if path is None or path in found or path.relative_to(package).as_posix() in PASSED_ON_AS_FLAGS:
            continue
        found.add(path)
        todo += _imports(path, package)
    folders = {path.parent for path in found} - {package}
    found |= {f for folder in folders for f in folder.rglob("*") if f.suffix in RESOURCES}
    return found


def _source(module: str, package: Path) -> Path | None:
    path = package.parent.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _imports(path: Path, package: Path) -> tuple[str, ...]:
    """Dotted names inside the package that a file may import; `from a import b` may mean module a.b."""
    names: list[str] = []
    inside = path.relative_to(package.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: -node.level]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            names += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return tuple(n for n in names if n.split(".")[0] == package.name)

"""SHA-256 of raw files' contents: what a result was made from, whatever time stamps say."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from atomdiffuser.errors import ReadError

READ_BYTES = 2**20


def file_sha256(path: Path) -> str:
    """SHA-256 of one file, or of every file in a folder store with its relative name."""
    if path.is_dir():
        digest = hashlib.sha256()
        for member in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{member.relative_to(path).as_posix()}\0{file_sha256(member)}\n".encode())
        return digest.hexdigest()
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise ReadError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    return digest.hexdigest()


def combined(digests: Sequence[str]) -> str:
    """One fingerprint for ordered files: their own where there is one, a hash of hashes otherwise."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def fingerprint_of(sources: Sequence[Path]) -> str:
    """SHA-256 of a series' sources, in the order given."""
    return combined([file_sha256(Path(s)) for s in sources])

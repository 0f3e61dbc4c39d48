"""Which microscope format a file is in, from its first bytes; the name only decides what is worth a complaint."""

from __future__ import annotations

import stat
import struct
from pathlib import Path

from atomdiffuser.errors import ReadError
from atomdiffuser.io._isolated import check_survives

DM, VELOX, NCEM, HSPY, ZSPY, FRAMES, SER, EMI, MRC, TIFF = (
    "Digital Micrograph", "Velox EMD", "NCEM EMD", "HyperSpy", "ZSpy", "frame store", "TIA SER", "TIA EMI",
    "MRC", "TIFF",
)  # fmt: skip

SUFFIXES = {
    ".dm3": DM, ".dm4": DM, ".emd": "EMD", ".hspy": HSPY, ".ser": SER, ".emi": EMI,
    ".mrc": MRC, ".mrcs": MRC, ".tif": TIFF, ".tiff": TIFF, ".zspy": ZSPY,
}  # fmt: skip
"""What the usual endings promise."""

HEADER_BYTES = 1024
_HDF5 = b"\x89HDF\r\n\x1a\n"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_store(path: Path) -> bool:
    """Whether a folder is one data set (Zarr) rather than a folder of files."""
    return path.suffix in (".zspy", ".zarr") or any((path / n).is_file() for n in ("zarr.json", ".zgroup"))


def sniff(path: Path) -> str | None:
    """Name of the format, None when the contents are of no known one.

    Raises ReadError for what cannot be opened: missing, unreadable, not a regular file.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return _sniff_folder(path)
        if not stat.S_ISREG(status.st_mode):
            raise ReadError(f"{path}: not a regular file (a pipe or device); remove it from the session")
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
    except OSError as error:
        raise ReadError(
            f"{path}: cannot be opened ({error.strerror or error}); check that it exists and its permissions"
        ) from None
    if header.startswith(_HDF5):
        check_survives(path)
        return _sniff_hdf5(path)
    return sniff_bytes(header)


def sniff_bytes(header: bytes) -> str | None:
    """The same from the first bytes; for HDF5 see `sniff`."""
    if _is_dm(header):
        return DM
    if header.startswith(_TIFF_STARTS):
        return TIFF
    if header.startswith(b"II\x97\x01"):
        return SER
    if header.startswith(b"JK\x00\x02"):
        return EMI
    if header[208:212] in (b"MAP ", b"MAP\0") and len(header) >= HEADER_BYTES:
        return MRC
    return None


def _is_dm(header: bytes) -> bool:
    """DM3: version, 4-byte length, byte order; DM4: the same with 8 bytes of length; all big-endian."""
    if len(header) < 24:
        return False
    if struct.unpack(">I", header[:4])[0] == 3:
        return struct.unpack(">I", header[8:12])[0] in (0, 1)
    if struct.unpack(">I", header[:4])[0] == 4:
        return struct.unpack(">I", header[12:16])[0] in (0, 1)
    return False


def _sniff_hdf5(path: Path) -> str | None:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if str(file.attrs.get("file_format", "")).lower() == "hyperspy" or "Experiments" in file:
                return HSPY
            if "Data" in file and ("Version" in file or "Application" in file):
                return VELOX
            if "version_major" in file.attrs or "emd_group_type" in file.attrs:
                return NCEM
            return NCEM if path.suffix.lower() == ".emd" else None
    except Exception as error:  # h5py raises whatever it stumbles over
        raise ReadError(f"{path}: damaged HDF5 file ({error}); copy it again from the microscope") from None


def _sniff_folder(path: Path) -> str | None:
    if (path / "zarr.json").is_file() or (path / ".zgroup").is_file():
        return FRAMES if path.name.endswith(".ome.zarr") else ZSPY
    return None

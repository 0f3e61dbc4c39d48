"""Raw files with something wrong: each gets one sentence, and the others of the session are read as usual."""

from __future__ import annotations

import json
import lzma
import os
import re
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from bad_files import (
    CALIBRATION,
    STACK,
    SUFFIXES,
    cut,
    dm_of_tags,
    dm_tag,
    replace_once,
    tiff_with,
    write_mrc,
    write_ncem,
    write_ser,
    write_valid,
)
from click.testing import CliRunner

from atomdiffuser.cli import main
from atomdiffuser.config import ConvertSettings
from atomdiffuser.errors import ReadError
from atomdiffuser.io.discovery import SeriesEntry, discover
from atomdiffuser.io.raw_writers import write_dm4
from atomdiffuser.io.readers import inspect, read_series
from atomdiffuser.io.status import read_status
from atomdiffuser.io.store import read_frames
from atomdiffuser.stages.convert import convert as convert_file


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """A session with one good series, to which a test adds what is bad."""
    folder = tmp_path / "session"
    write_valid(folder / "good.dm4")
    return folder


def looked_at(session: Path) -> dict[str, SeriesEntry]:
    """Entries by ID; nothing raw was changed by looking, and the good series is one."""
    before = {p: p.read_bytes() for p in session.rglob("*") if p.is_file()}
    entries = {e.series_id: e for e in discover(session, results=session / "results")}
    assert {p: p.read_bytes() for p in session.rglob("*") if p.is_file()} == before
    assert entries["good"].state == "series"
    return entries


def bad_one(session: Path, state: str) -> SeriesEntry:
    """The entry beside the good one, with a reason of one line."""
    (entry,) = (e for e in looked_at(session).values() if e.series_id != "good")
    assert entry.state == state, (entry.state, entry.reason)
    assert "\n" not in entry.reason and "Traceback" not in entry.reason
    return entry


def convert(session: Path, entry: SeriesEntry, *arguments: str) -> tuple[int, str, Path]:
    """Exit code, what the user saw, folder of results."""
    results = session.parent / "results" / entry.series_id
    raw = [str(session / s) for s in entry.sources]
    command = ["convert", *raw, str(results / "frames.ome.zarr" / "zarr.json"), "--name", entry.name]
    command += ["--fingerprint", entry.fingerprint] if entry.fingerprint else []
    command += ["--status", str(results / "status.json"), "--log", str(results / "convert.log"), *arguments]
    run = CliRunner().invoke(main, command, prog_name="atomdiffuser")
    return run.exit_code, run.output, results


# --------------------------------------------------------------------------------------------------- truncated


@pytest.mark.fault(
    fault="a file cut short in its first bytes, its header, its metadata, its pixels (DM4, EMD, MRC, SER, TIFF)",
    happens="refused before anything is written",
    user_sees="“truncated or damaged (3806 bytes, its tags promise 4200); copy it again from the microscope”",
)
@pytest.mark.parametrize("place", ["first bytes", "header", "metadata", "pixels"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated(session: Path, suffix: str, place: str) -> None:
    cut(session / f"bad_1{suffix}", place)
    assert "copy it again" in bad_one(session, "failed").reason


@pytest.mark.fault(
    fault="a file whose last bytes are missing",
    happens="refused, or read whole where they are no pixels; never frames that are not in the file",
    user_sees="as above, or nothing",
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_last_bytes_missing(session: Path, suffix: str) -> None:
    cut(session / f"bad_1{suffix}", "last bytes")
    entry = {e.series_id: e for e in looked_at(session).values()}["bad_1"]
    if entry.state == "failed":
        assert "copy it again" in entry.reason
    else:
        code, _, results = convert(session, entry)
        assert code == 0
        np.testing.assert_array_equal(read_frames(results / "frames.ome.zarr").frames.compute(), STACK)


# ------------------------------------------------------------------------------------------- refused at a look


def _hdf5(path: Path, **storage: object) -> None:
    write_ncem(path, np.zeros((2, 4, 4), "u2"), **storage)


def _virtual(path: Path) -> None:
    layout = h5py.VirtualLayout((2, 4, 4), "u2")
    layout[:] = h5py.VirtualSource("good.dm4", "x", shape=(2, 4, 4))
    write_ncem(path, np.zeros((2, 4, 4), "u2"))
    with h5py.File(path, "a") as file:
        del file["data/stack/data"]
        file.create_virtual_dataset("data/stack/data", layout)


def _external_link(path: Path) -> None:
    write_ncem(path, np.zeros((2, 4, 4), "u2"))
    with h5py.File(path, "a") as file:
        file["data/stack/more"] = h5py.ExternalLink("/etc/passwd", "/")


def _forged_picture(path: Path) -> None:
    write_valid(path)
    old, new = struct.pack("<I", 16), struct.pack("<I", 2**31 - 1)
    replace_once(path, rb"Dimensions.*?" + old, lambda found: found[: -len(old)] + new)


def _looping_pages(path: Path) -> None:
    tifffile.imwrite(path, STACK, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as file:
        first, page = file.pages[0].offset, file.pages[-1].offset
    data = bytearray(path.read_bytes())
    (count,) = struct.unpack_from("<H", data, page)
    struct.pack_into("<I", data, page + 2 + 12 * count, first)
    path.write_bytes(data)


def _pickled_zspy(path: Path) -> None:
    (path / "Experiments" / "x" / "data").mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    array = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "order": "C", "fill_value": None}
    array |= {"compressor": None, "filters": [{"id": "pickle", "protocol": 5}]}
    (path / "Experiments" / "x" / "data" / ".zarray").write_text(json.dumps(array))


def _escaping_zspy(path: Path) -> None:
    path.mkdir()
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / "Experiments").symlink_to("/etc")


def _bomb(path: Path, compress: str) -> None:
    """A TIFF whose first strip decompresses to 512 MiB, for 384 bytes of pixels."""
    tifffile.imwrite(path, STACK, photometric="minisblack", metadata=None, compression=compress)
    engine = zlib.compressobj(9) if compress == "zlib" else lzma.LZMACompressor()
    packed = b"".join(engine.compress(bytes(2**20)) for _ in range(512)) + engine.flush()
    at = path.stat().st_size
    with path.open("ab") as file:
        file.write(packed)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[-1].tags[273].overwrite(at)
        file.pages[-1].tags[279].overwrite(len(packed))


def _one_block(path: Path) -> None:
    shape = (600, 1024, 1024)
    write_ncem(path, np.zeros((600, 4, 4)), shape=shape, dtype="u2", chunks=shape, compression=9)
    with h5py.File(path, "a") as file:
        file["data/stack/data"].id.write_direct_chunk((0, 0, 0), bytes(10**6))


NESTED = b"".join(struct.pack(">BH", 20, 1) + b"g" + struct.pack(">qBBq", 0, 1, 0, 1) for _ in range(5000))

REFUSED = [
    pytest.param(
        "a.dm4", lambda p: p.touch(), "does not start like one",
        id="zero bytes",
        marks=pytest.mark.fault(
            fault="a file of zero bytes (any format)", happens="refused",
            user_sees="“is named like Digital Micrograph but does not start like one; copy it again”",
        ),
    ),
    *[pytest.param(f"a{s}", lambda p: p.touch(), "does not start like one", id=f"no bytes {s}") for s in SUFFIXES[1:]],
    pytest.param(
        "a.mrc", lambda p: p.write_bytes(bytes(5000)), "header is damaged",
        id="zeros only",
        marks=pytest.mark.fault(
            fault="a file that holds nothing but zeros (copied from a full disk)", happens="refused",
            user_sees="“its MRC header is damaged (0 × 0 × 0 pixels, mode 0); copy it again”",
        ),
    ),
    pytest.param(
        "a.dm4", lambda p: p.write_text("Dear diary\n" * 100), "named like Digital Micrograph",
        id="text named dm4",
        marks=pytest.mark.fault(
            fault="text, a picture or an archive with the ending of a raw file", happens="refused",
            user_sees="“is named like Digital Micrograph but does not start like one; copy it again”",
        ),
    ),
    pytest.param("a.emd", lambda p: p.write_bytes(b"PK\3\4" + bytes(999)), "named like EMD", id="zip named emd"),
    pytest.param("a.tif", lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"), "named like TIFF", id="png named tif"),
    pytest.param(
        "a.dm4", lambda p: os.mkfifo(p), "not a regular file",
        id="pipe",
        marks=pytest.mark.fault(
            fault="a pipe or device among the raw files", happens="never opened, so that nothing waits",
            user_sees="“not a regular file (a pipe or device); remove it from the session”",
        ),
    ),
    pytest.param(
        "a.dm4", lambda p: p.symlink_to(p.name), "cannot be opened",
        id="link to itself",
        marks=pytest.mark.fault(
            fault="a link to itself, or to a file that is gone", happens="refused",
            user_sees="“cannot be opened (…); is it a link to a missing file?”",
        ),
    ),
    pytest.param("a.emd", lambda p: p.symlink_to("gone.emd"), "link to a missing file", id="link to nowhere"),
    pytest.param(
        "a.dm4", lambda p: p.mkdir(), "an empty folder with the name of a raw file",
        id="folder named dm4",
        marks=pytest.mark.fault(
            fault="an empty folder named x.dm4", happens="shown as failed",
            user_sees="“an empty folder with the name of a raw file; copy the file itself from the microscope”",
        ),
    ),
    pytest.param(
        "a.dm4", _forged_picture, "truncated or damaged|claims",
        id="DM picture larger than its file",
        marks=pytest.mark.fault(
            fault="a DM header that claims a picture of 2³¹ columns", happens="refused without allocating it",
            user_sees="“cannot be read as Digital Micrograph (…); it may be truncated or damaged, copy it again”",
        ),
    ),
    pytest.param(
        "a.dm4", lambda p: dm_of_tags(p, dm_tag(b"x", (20, 15, 0, 0, 2**60))), "claims .* values",
        id="DM endless array",
        marks=pytest.mark.fault(
            fault="DM tags that claim 2⁶⁰ values, a negative length, or 5,000 nested groups",
            happens="refused before a value is read",
            user_sees="“truncated or damaged (a tag claims 1152921504606846976 values); copy it again”",
        ),
    ),
    pytest.param("a.dm4", lambda p: dm_of_tags(p, dm_tag(b"x", (20, 3, -5))), "length is -5", id="DM negative length"),
    pytest.param("a.dm4", lambda p: dm_of_tags(p, b"", 2**62), "ends after .* within a tag", id="DM endless tags"),
    pytest.param("a.dm4", lambda p: dm_of_tags(p, NESTED), "nest too deep", id="DM nested groups"),
    pytest.param("a.dm4", lambda p: dm_of_tags(p, dm_tag(b"x", (99,))), "values of kind 99", id="DM unknown type"),
    pytest.param(
        "a.emd", lambda p: _hdf5(p, shape=(10**6, 10**5, 10**5), dtype="u2", chunks=(1, 64, 64)),
        "claims 2e\\+04 TB but 0 bytes",
        id="HDF5 of petabytes",
        marks=pytest.mark.fault(
            fault="an HDF5 data set that claims petabytes, stored in no bytes", happens="refused without allocating it",
            user_sees="“/data/stack/data claims 2e+04 TB but 0 bytes of it are stored (…)”",
        ),
    ),
    pytest.param(
        "a.emd", lambda p: _hdf5(p, shape=(2, 4, 4), dtype="u2", external=[("/etc/passwd", 0, 64)]),
        "kept in another file",
        id="HDF5 external storage",
        marks=pytest.mark.fault(
            fault="HDF5 external storage, links and virtual data sets, which would show other files of the computer",
            happens="refused; the other file is not opened",
            user_sees="“/data/stack/data is kept in another file, which is not read; save all of it in one file”",
        ),
    ),
    pytest.param("a.emd", _external_link, "kept in another file", id="HDF5 external link"),
    pytest.param("a.emd", _virtual, "kept in another file", id="HDF5 virtual data set"),
    pytest.param(
        "a.zspy", _pickled_zspy, "pickled Python objects",
        id="ZSpy with pickle",
        marks=pytest.mark.fault(
            fault="a ZSpy folder with pickled objects, which would run code as it is read", happens="refused",
            user_sees="“… holds pickled Python objects, which could run any code and are never read; …”",
        ),
    ),
    pytest.param("a.zspy", _escaping_zspy, "kept in another file", id="ZSpy with a link out"),
    pytest.param(
        "a.mrc", lambda p: write_mrc(p, STACK, words={0: 2**31 - 1, 1: 2**31 - 1}), "header promises",
        id="MRC of exabytes",
        marks=pytest.mark.fault(
            fault="an MRC header of 2³¹ × 2³¹ pixels, negative size, unknown type, or 2³¹ bytes before the data",
            happens="refused without allocating anything",
            user_sees="“truncated (2176 bytes, its header promises …); copy it again from the microscope”",
        ),
    ),
    pytest.param("a.mrc", lambda p: write_mrc(p, STACK, words={2: -3}), "header is damaged", id="MRC negative frames"),
    pytest.param("a.mrc", lambda p: write_mrc(p, STACK, words={3: 99}), "mode 99", id="MRC unknown type"),
    pytest.param("a.mrc", lambda p: write_mrc(p, STACK, words={23: 2**31 - 1}), "promises", id="MRC long header"),
    pytest.param(
        "a_1.ser", lambda p: write_ser(p, STACK, total=2**30, valid=2**30), "claims 1073741824 frames",
        id="SER of a billion frames",
        marks=pytest.mark.fault(
            fault="a SER header of a billion frames, of none, or of an unknown type", happens="refused",
            user_sees="“claims 1073741824 frames (truncated or damaged); copy it again from the microscope”",
        ),
    ),
    pytest.param("a_1.ser", lambda p: write_ser(p, STACK, valid=0), "no valid frames", id="SER without frames"),
    pytest.param("a_1.ser", lambda p: write_ser(p, STACK, code=77), "SER data type 77", id="SER unknown type"),
    pytest.param(
        "a.tif", lambda p: tiff_with(p, 256, 10**6, compression="zlib"), "claims",
        id="TIFF bomb",
        marks=pytest.mark.fault(
            fault="a TIFF that claims a million times what it holds, or whose pages go in a circle", happens="refused",
            user_sees="“its header claims … of data in a file of … (truncated, damaged or forged); copy it again”",
        ),
    ),
    pytest.param(
        "a.tif", lambda p: _bomb(p, "zlib"), "holds more than the 384 bytes of its pixels",
        id="TIFF decompression bomb",
        marks=pytest.mark.fault(
            fault="decompression bombs: a TIFF strip of 0.5 MB that unpacks to 512 MiB, an HDF5 block of 1.3 GB",
            happens="unpacked as far as the pixels go, then refused; the HDF5 block is not unpacked",
            user_sees="“a strip of it holds more than the 384 bytes of its pixels (damaged, or made to use up …)”",
        ),
    ),
    pytest.param("a.tif", lambda p: _bomb(p, "lzma"), "holds more than the 384 bytes", id="TIFF LZMA bomb"),
    pytest.param("a.emd", _one_block, "blocks of 1.26 GB, each unpacked as a whole", id="HDF5 one block"),
    pytest.param("a.tif", _looping_pages, "page 4 of it is missing", id="TIFF in circles"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "says"), REFUSED)
def test_refused_with_one_sentence(session: Path, name: str, write, says: str) -> None:
    write(session / name)
    entry = bad_one(session, "failed")
    assert re.search(says, entry.reason), entry.reason
    if not name.endswith(".zspy") and entry.fingerprint:  # its job says the same, in all three places
        code, said, results = convert(session, entry)
        assert code == 1 and "Traceback" not in said and len(said.strip().splitlines()) == 1, said
        assert re.search(says, said) and name in said
        status = read_status(results / "status.json")
        assert (status.state, status.stage) == ("failed", "convert") and re.search(says, status.reason)
        assert "Traceback" in (results / "convert.log").read_text(encoding="utf-8")
        assert not (results / "frames.ome.zarr").exists() and not list(results.glob("*partial*"))


@pytest.mark.fault(
    fault="a file that may not be read",
    happens="shown as failed, tried again by the next run",
    user_sees="“cannot be opened (Permission denied); check that it exists and its permissions”",
)
def test_unreadable(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_valid(session / "a.dm4")
    opened = Path.open

    def refuse(path: Path, *how, **more):
        if path.name == "a.dm4":
            raise PermissionError(13, "Permission denied")
        return opened(path, *how, **more)

    with monkeypatch.context() as patch:  # root may read everything, so the file's mode alone would show nothing
        patch.setattr(Path, "open", refuse)
        (entry,) = (e for e in discover(session, results=session / "results") if e.series_id == "a")
    assert entry.state == "failed" and "Permission denied" in entry.reason and "permissions" in entry.reason
    assert bad_one(session, "series").series_id == "a"


@pytest.mark.fault(
    fault="folders linked in a circle",
    happens="each folder is looked at once",
    user_sees="nothing",
)
def test_folders_in_a_circle(session: Path) -> None:
    (session / "one" / "two").mkdir(parents=True)
    (session / "one" / "two" / "back").symlink_to(session)
    (session / "one" / "self").symlink_to(session / "one")
    assert set(looked_at(session)) == {"good"}


# ------------------------------------------------------------------------------------------------ no time series

SKIPPED = [
    pytest.param(
        "a.emd", lambda p: write_ncem(p, np.zeros((0, 4, 4), "u2")), "holds no frames",
        id="no frame",
        marks=pytest.mark.fault(
            fault="no frame, or a single one", happens="skipped",
            user_sees="“a single image; put the frames of a series into a subfolder of their own”",
        ),
    ),
    pytest.param("a.dm4", lambda p: write_valid(p, STACK[0]), "a single image", id="one frame"),
    pytest.param(
        "a.mrc", lambda p: write_mrc(p, STACK.astype("c8")), "complex data",
        id="complex",
        marks=pytest.mark.fault(
            fault="complex data, colour pictures", happens="skipped",
            user_sees="“complex data (such as a Fourier transform)”, “a colour picture”",
        ),
    ),
    pytest.param(
        "a.tif", lambda p: tifffile.imwrite(p, np.zeros((9, 8, 3), "u1"), photometric="rgb"), "a colour pic", id="RGB"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "says"), SKIPPED)
def test_skipped_with_the_reason(session: Path, name: str, write, says: str) -> None:
    write(session / name)
    entries = [e for e in looked_at(session).values() if e.series_id != "good"]
    assert [e.state for e in entries] in (["skipped"], ["failed"])
    assert re.search(says, entries[0].reason), entries[0].reason


@pytest.mark.fault(
    fault="frames of different shapes in one folder",
    happens="the many of one shape are the series, the odd one is left out",
    user_sees="“a single image of another shape or type than the 3 others in this folder”",
)
def test_frames_of_different_shape(session: Path) -> None:
    for k in range(3):
        write_valid(session / "f" / f"{k}.dm4", STACK[k])
    write_valid(session / "f" / "3.dm4", STACK[0][:, :8])
    entries = looked_at(session)
    assert entries["f"].state == "series" and len(entries["f"].sources) == 3
    assert (entries["3"].state, "another shape" in entries["3"].reason) == ("skipped", True)


# ------------------------------------------------------------------------------------------- values, taken as is


@pytest.mark.fault(
    fault="every type and byte order, two frames, constant, saturated, negative, NaN and infinite pixels",
    happens="stored bit by bit as they are",
    user_sees="nothing; frames that show nothing are flagged by the register stage",
)
@pytest.mark.parametrize("kind", ["u1", "i1", "<u2", ">u2", "i2", "<i4", ">i4", "u4", "f4", ">f4", "f8"])
@pytest.mark.parametrize("values", ["two frames", "constant", "saturated", "extremes"])
def test_values_are_kept(session: Path, kind: str, values: str) -> None:
    dtype = np.dtype(kind)
    limits = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    stack = (STACK % 100).astype(dtype)
    if values == "two frames":
        stack = stack[:2]
    elif values == "constant":
        stack[:] = 7
    elif values == "saturated":
        stack[:] = limits[1] if dtype.kind != "f" else np.finfo(dtype).max
    else:
        stack[:, 0, 0], stack[:, 0, 1] = limits
        if dtype.kind == "f":
            stack[:, 0, 2] = np.nan
    tifffile.imwrite(
        session / "a.tif", stack, photometric="minisblack", metadata=None, byteorder=">" if kind[0] == ">" else "<"
    )
    code, said, results = convert(session, bad_one(session, "series"))
    assert code == 0, said
    kept = read_frames(results / "frames.ome.zarr").frames.compute()
    assert kept.dtype == dtype.newbyteorder("=")
    np.testing.assert_array_equal(kept, stack)


@pytest.mark.fault(
    fault="a frame without any finite value",
    happens="the series stops",
    user_sees="“frame 1 holds no finite value; list it under excluded_frames in session.yaml”",
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_frame_of_nan(session: Path, value: float) -> None:
    stack = STACK.astype("f4")
    stack[1] = value
    write_ncem(session / "a.emd", stack)
    code, said, results = convert(session, bad_one(session, "series"))
    assert code == 1 and "a.emd: frame 1 holds no finite value; list it" in said
    assert not (results / "frames.ome.zarr").exists()


@pytest.mark.fault(
    fault="a frame in the middle that is damaged, while the last one can be read",
    happens="found when the frames are converted: the series stops, and no store appears",
    user_sees="“truncated or damaged (a strip of it ends at byte 2147483856); copy it again”",
)
def test_a_damaged_frame_in_the_middle(session: Path) -> None:
    tiff_with(session / "a.tif", 279, 2**31, compression="zlib")
    code, said, results = convert(session, bad_one(session, "series"))
    assert code == 1 and "a.tif: truncated or damaged (a strip" in said and len(said.strip().splitlines()) == 1
    assert read_status(results / "status.json").state == "failed"
    assert not (results / "frames.ome.zarr").exists()


@pytest.mark.fault(
    fault="a damaged EMD file over which the sound one is copied, while the program goes on",
    happens="nothing of the damaged one stays open, so the sound one is read",
    user_sees="the error once, then the frames",
)
def test_a_damaged_file_does_not_stay_open(tmp_path: Path) -> None:
    """HDF5 takes one file for another that has its place on the disk, as long as it is open."""
    path = tmp_path / "a.emd"
    write_ncem(path, STACK, shape=STACK.shape, dtype="u2", chunks=(1, 12, 16), compression="gzip")
    with h5py.File(path, "a") as file:
        file["data/stack/data"][...] = STACK
        chunk = file["data/stack/data"].id.get_chunk_info(2)
    sound = path.read_bytes()
    path.write_bytes(sound[: chunk.byte_offset] + bytes(chunk.size) + sound[chunk.byte_offset + chunk.size :])
    before = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET)
    with pytest.raises(ReadError, match=r"a\.emd: cannot be read as NCEM EMD .* copy it again"):
        inspect(path)
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET) == before
    with path.open("r+b") as file:  # as cp does: the same file on the disk
        file.write(sound)
    np.testing.assert_array_equal(read_series(path).frames.compute(), STACK)


# ------------------------------------------------------------------------------------------------- calibrations


@pytest.mark.fault(
    fault="a pixel size that is missing, 0, negative, infinite, not a number or 10¹⁶ nm",
    happens="taken for unknown: results are in pixels, and there is no fluence",
    user_sees="what is missing, as lines for session.yaml",
)
@pytest.mark.parametrize("pixel_A", [0.0, -0.2, np.nan, np.inf, 1e17])
def test_absurd_pixel_sizes_are_unknown(session: Path, pixel_A: float) -> None:
    write_mrc(session / "a.mrc", STACK, pixel_A=pixel_A)
    code, _, results = convert(session, bad_one(session, "series"))
    acquisition = read_frames(results / "frames.ome.zarr").acquisition
    assert (code, acquisition.pixel_size_nm, acquisition.fluence_per_frame_e_per_A2) == (0, None, None)


@pytest.mark.fault(
    fault="non-square pixels",
    happens="both sizes are kept",
    user_sees="nothing",
)
def test_non_square_pixels(session: Path) -> None:
    write_dm4(session / "a.dm4", STACK, **{**CALIBRATION, "pixel_size_nm": (0.02, 0.05)})
    _, _, results = convert(session, bad_one(session, "series"))
    assert read_frames(results / "frames.ome.zarr").acquisition.pixel_size_nm == pytest.approx((0.02, 0.05))


@pytest.mark.fault(
    fault="no beam current, or 0; another one in session.yaml than in the file",
    happens="unknown stays unknown, never guessed; session.yaml wins, and the report says where each value is from",
    user_sees="“fluence unknown”, and what to write into session.yaml",
)
@pytest.mark.parametrize(("current", "override", "known"), [(None, None, None), (0.0, None, None), (30.0, 12.0, 12.0)])
def test_missing_and_conflicting_current(session: Path, current, override, known) -> None:
    write_dm4(session / "a.dm4", STACK, **{**CALIBRATION, "probe_current_pA": current})
    more = [] if override is None else ["--overrides", json.dumps({"probe_current_pA": override})]
    code, said, results = convert(session, bad_one(session, "series"), *more)
    acquisition = read_frames(results / "frames.ome.zarr").acquisition
    assert (code, acquisition.probe_current_pA) == (0, known), said
    assert acquisition.sources.get("probe_current_pA") == (None if known is None else "session.yaml")
    assert (acquisition.fluence_per_frame_e_per_A2 is None) == (known is None)


# ----------------------------------------------------------------------------------------------- growing files


@pytest.mark.fault(
    fault="a file that grows, or is replaced, between the look at the session and its conversion",
    happens="the series stops, its former store stays; the next run takes the whole file",
    user_sees="“changed while it was read, or since the session was looked at; wait until it is written, …”",
)
def test_a_file_that_changes_meanwhile(session: Path) -> None:
    write_valid(session / "a.mrc")
    entry = bad_one(session, "series")
    assert convert(session, entry)[0] == 0
    write_valid(session / "a.mrc", np.concatenate([STACK, STACK]))
    code, said, results = convert(session, entry)
    assert code == 1 and "a.mrc: changed while it was read" in said and "run again" in said
    assert read_frames(results / "frames.ome.zarr").n_frames == len(STACK)
    assert convert(session, bad_one(session, "series"))[0] == 0
    assert read_frames(results / "frames.ome.zarr").n_frames == 2 * len(STACK)


@pytest.mark.fault(
    fault="a file that the microscope still writes while its frames are converted",
    happens="no store appears, as nobody knows which frames are whole; the next run takes the whole file",
    user_sees="“changed while it was read, …; wait until it is written or copied, then run again”",
)
@pytest.mark.parametrize("grows_by", [1, STACK[0].nbytes])
def test_a_file_that_grows_while_it_is_converted(tmp_path: Path, grows_by: int) -> None:
    path, output = tmp_path / "a.mrc", tmp_path / "a" / "frames.ome.zarr"
    write_valid(path)

    def grow(done: int, total: int) -> None:
        with path.open("ab") as file:
            file.write(bytes(grows_by))

    with pytest.raises(ReadError, match=r"a\.mrc: changed while it was read, .* wait until it is written or copied"):
        convert_file([path], output, ConvertSettings(), series_id="a", name="a", progress=grow)
    assert list((tmp_path / "a").iterdir()) == []
    convert_file([path], output, ConvertSettings(), series_id="a", name="a")
    assert read_frames(output).n_frames == len(STACK)


# --------------------------------------------------------------------------------------------------------- names

NAMES = [
    "with  spaces", "quo'te \"double\"", "$(touch pwned)", "a;touch pwned", "new\nline", "tab\there", "ünï ☃ 电子",
    "-rf", "--help", "{wildcard}", "{}", "n" * 240, "a..b", "~", "<script>alert(1)<∕script>", "%s%n",
    "\x1b[31mred", "CON", "*?[x]", "#!", "&&true", "`id`", "a\\b",
]  # fmt: skip


@pytest.mark.fault(
    fault="names with spaces, quotes, $, ;, line breaks, escape codes, {}, a leading dash, 240 letters, unicode",
    happens="converted; the folder of results is a slug, the name is shown on one line",
    user_sees="the name, control characters as “?”",
)
@pytest.mark.parametrize("name", NAMES, ids=lambda n: ascii(n)[:20])
def test_awkward_names(session: Path, name: str) -> None:
    write_valid(session / "x.dm4")
    (session / "x.dm4").rename(session / f"{name}.dm4")
    entry = bad_one(session, "series")
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,89}", entry.series_id) and not entry.series_id.startswith("-")
    assert entry.name.isprintable()
    code, said, results = convert(session, entry)
    assert code == 0, said
    assert results.parent == session.parent / "results" and (results / "frames.ome.zarr").is_dir()
    assert sorted(p.name for p in session.iterdir()) == sorted(["good.dm4", f"{name}.dm4"])


@pytest.mark.fault(
    fault="two files whose names slug to one ID",
    happens="both get a suffix from their paths, which stays",
    user_sees="both under their own names",
)
def test_two_files_of_one_slug(session: Path) -> None:
    for name in ("a b.dm4", "a#b.dm4"):
        write_valid(session / name)
    entries = [e for e in looked_at(session).values() if e.series_id != "good"]
    assert sorted(e.name for e in entries) == ["a b", "a#b"]
    assert len({e.series_id for e in entries}) == 2 and all(e.series_id.startswith("a-b-") for e in entries)

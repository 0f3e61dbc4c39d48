"""A short run of the fuzzing benchmark."""

from __future__ import annotations

import random

import pytest

from benchmarks import fuzz
from benchmarks.fuzz_corpus import READERS, fields_of, write_corpus
from benchmarks.fuzz_mutations import mutate


@pytest.mark.slow
@pytest.mark.fault(
    fault="bits flipped, blocks moved, lengths and offsets overwritten (DM, EMD, MRC, TIFF, SER)",
    happens="read, or refused by an error of our own; no crash, no hang, bounded memory",
    user_sees="a sentence that names the file",
)
def test_damaged_files_are_read_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATOMDIFFUSER_REAL_DATA", raising=False)
    table = fuzz.run(20)
    assert list(table["reader"]) == list(READERS)
    assert table["reached"].all(), table.T.to_string()
    assert table["read"].sum() > 0 and (table["ReadError"] > 0).all()


def test_the_same_number_gives_the_same_damage(tmp_path) -> None:
    for reader, paths in write_corpus(tmp_path).items():
        data = paths[0].read_bytes()
        damaged = [mutate(data, fields_of(reader, data), data, random.Random(f"{reader} {k}")) for k in (1, 1, 2)]
        assert damaged[0] == damaged[1] != damaged[2]
        assert data not in damaged
        assert all(0 <= at and width in (1, 2, 4, 8, 32, 48, 64, 96) for at, width in fields_of(reader, data))

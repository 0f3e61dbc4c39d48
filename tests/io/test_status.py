from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomdiffuser.errors import StoreError
from atomdiffuser.io.status import Status, read_status, write_status

TEXT = st.text(st.characters(codec="utf-8"))


@given(
    st.builds(
        Status, series=TEXT, name=TEXT, source=TEXT, state=st.sampled_from(["ok", "failed", "skipped"]), reason=TEXT
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_status_comes_back(tmp_path, status):
    write_status(tmp_path / "a" / "status.json", status)
    assert read_status(tmp_path / "a" / "status.json") == status
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["status.json"]


def test_errors(tmp_path):
    with pytest.raises(StoreError, match="state of 'a' is 'fine', expected one of ok, failed, skipped"):
        Status("a", "A", "a.dm4", "fine")
    with pytest.raises(StoreError, match="no such file"):
        read_status(tmp_path / "status.json")
    for text in ("{", "[]", "{}"):
        (tmp_path / "status.json").write_text(text)
        with pytest.raises(StoreError, match="not a status file"):
            read_status(tmp_path / "status.json")


def test_fields_of_a_later_version_are_ignored(tmp_path):
    (tmp_path / "status.json").write_text('{"series": "a", "name": "A", "source": "a", "state": "ok", "mood": 1}')
    assert read_status(tmp_path / "status.json").state == "ok"

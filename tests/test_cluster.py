"""Work of pairs and maps by the workers of a dask cluster: the same numbers, and what is said when it goes wrong."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from worker_tally import Tally

from atomdiffuser import cluster as module
from atomdiffuser.cli import main
from atomdiffuser.cluster import RETRIES, require_address, workers_at
from atomdiffuser.config import ConvertSettings, DecaySettings, RegisterSettings
from atomdiffuser.errors import ClusterError, ReadError, SettingsError
from atomdiffuser.estimation import pair_work
from atomdiffuser.estimation.frame_source import FrameSource
from atomdiffuser.io.map_store import MAP_NAMES, read_maps
from atomdiffuser.io.tables import read_table
from atomdiffuser.series import FrameSeries
from atomdiffuser.stages import decay as decay_stage
from atomdiffuser.stages import register as register_stage
from atomdiffuser.stages.convert import convert
from atomdiffuser.stages.decay import MapsOnWorker, decay
from atomdiffuser.stages.register import PairsOnWorker, register
from atomdiffuser.stages.simulate import simulate
from atomdiffuser.workflow.config_file import read_config

distributed = pytest.importorskip("distributed", reason="needs the extra `distributed`")

TABLES = ("pairs.parquet", "trajectory.parquet")
RTOL = 1e-6  # of a pixel or of a ratio; of the largest number where these are large
N = 6
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
BROKEN = RuntimeError("CUDA error: an illegal memory access was encountered")
Results = dict[str, np.ndarray]


@contextmanager
def two_workers() -> Iterator[str]:
    """The address of a scheduler with two workers, each a process with one thread."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0", memory_limit=None
    ) as found:
        found.wait_for_workers(2, timeout=120)
        yield found.scheduler_address


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with two_workers() as found:
        yield found


@pytest.fixture
def address_of_others() -> Iterator[str]:
    """Workers that may be killed: given up after the second that dies of the same part."""
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}), two_workers() as found:
        yield found


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series with an excluded frame and one without structure."""
    raw = tmp_path_factory.mktemp("raw") / "a.dm4"
    simulate(raw, format="dm4", n_frames=N, shape=(72, 88), electrons_per_px=200, drift_px_per_frame=0.6,
             random_walk_px=0.1, pixel_size_nm=0.03, seed=1)  # fmt: skip
    path = raw.parent / "frames.ome.zarr"
    convert([raw], path, ConvertSettings(), series_id="a", name="a", overrides={"excluded_frames": [2]})
    return path


def analysed(frames: Path, folder: Path, scheduler: str | None = None, method: str = "network") -> Results:
    """Every number of pairs, trajectory and maps."""
    folder.mkdir()
    trajectory, maps = folder / "trajectory.parquet", folder / "decay.zarr"
    register(frames, folder / "pairs.parquet", trajectory, RegisterSettings(), dask_scheduler=scheduler)
    decay(frames, trajectory, maps, DecaySettings(method=method), dask_scheduler=scheduler)
    stored = read_maps(maps)
    found = {name: np.asarray(getattr(stored, name)[...]) for name in MAP_NAMES}
    found["bandwidth_px"] = np.asarray(stored.attributes["bandwidth_px"], dtype=float)
    for name in TABLES:
        table = read_table(folder / name)
        found |= {f"{name} {column}": table[column].to_numpy() for column in table}
    return found


@pytest.fixture(scope="module", params=["network", "regression"])
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def by_itself(frames: Path, tmp_path_factory: pytest.TempPathFactory, method: str) -> Results:
    return analysed(frames, tmp_path_factory.mktemp("itself") / "results", method=method)


def assert_same(found: Results, expected: Results) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if values.dtype.kind == "f":
            atol = RTOL * float(np.abs(values[np.isfinite(values)]).max(initial=1.0))
            np.testing.assert_allclose(found[name], values, rtol=RTOL, atol=atol, err_msg=name)
        else:
            pd.testing.assert_series_equal(pd.Series(found[name]), pd.Series(values), obj=name)


def test_workers_give_the_same_numbers(
    frames: Path, address: str, by_itself: Results, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    assert len(by_itself) > 40

    def by_workers_alone(*_: object, **__: object) -> None:
        raise AssertionError("this process did what is for the workers")

    for owner, name in ((pair_work, "register_unknown"), (pair_work, "register_from"), (pair_work, "Predictor"),
                        (decay_stage, "decay_estimator")):  # fmt: skip
        monkeypatch.setattr(owner, name, by_workers_alone)
    found = analysed(frames, tmp_path / "results", address, method)
    assert_same(found, by_itself)
    other = found | {"contrast": found["contrast"] * (1 + 1e-5)}
    with pytest.raises(AssertionError, match="contrast"):
        assert_same(other, by_itself)


@pytest.mark.fault(
    fault="a worker of a dask cluster is killed at its work",
    happens="what it had is done again, by another one or by itself, started anew",
    user_sees="nothing",
)
def test_a_killed_worker_changes_no_number(frames: Path, address_of_others: str, tmp_path: Path) -> None:
    expected = analysed(frames, tmp_path / "itself", method="regression")
    address, killed = address_of_others, []

    def kill(done: int, total: int) -> None:
        if not killed:
            with distributed.Client(address, set_as_default=False) as client:
                killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    folder = tmp_path / "results"
    folder.mkdir()
    pairs, trajectory, maps = (folder / name for name in ("pairs.parquet", "trajectory.parquet", "decay.zarr"))
    for run in (
        lambda: register(frames, pairs, trajectory, RegisterSettings(), dask_scheduler=address, progress=kill),
        lambda: decay(frames, trajectory, maps, DecaySettings(method="regression"), dask_scheduler=address,
                      progress=kill),
    ):  # fmt: skip
        killed.clear()
        run()
        assert killed
    stored = read_maps(maps)
    found = {name: np.asarray(getattr(stored, name)[...]) for name in MAP_NAMES}
    for name in TABLES:
        table = read_table(folder / name)
        found |= {f"{name} {column}": table[column].to_numpy() for column in table}
    assert_same(found, {name: expected[name] for name in found})


def test_parts_are_done_in_order_and_their_work_opened_once_a_worker(address: str, tmp_path: Path, caplog) -> None:
    with workers_at(address, Tally(tmp_path)) as found:
        assert list(found.each(range(20))) == [n**2 for n in range(20)]
        assert list(found.each(range(20, 24))) == [n**2 for n in range(20, 24)]
    assert 1 <= len(list(tmp_path.glob("opened-*"))) <= 2
    assert caplog.text.count("is odd") == 12 and "tcp://127.0.0.1" in caplog.text
    with distributed.Client(address, set_as_default=False) as client:
        assert not any(client.run(lambda: len(module._opened)).values()), "workers let go of what they had opened"


def test_few_parts_are_on_their_way_at_a_time(address: str, tmp_path: Path) -> None:
    asked = []
    with workers_at(address, Tally(tmp_path)) as found:
        results = found.each(asked.append(n) or n for n in range(100))
        next(results)
        assert len(asked) <= module.ON_THEIR_WAY * 2
        results.close()


def test_parts_are_many_enough_for_all_workers_and_no_larger_than_allowed(address: str, tmp_path: Path) -> None:
    with workers_at(address, Tally(tmp_path)) as found:
        for n, largest, size in ((80, 32, 10), (800, 99, 32), (800, 9, 9), (3, 32, 1), (8, 0, 1)):
            parts = found.parts(n, largest)
            assert [k for part in parts for k in range(n)[part]] == list(range(n))
            assert max(part.stop - part.start for part in parts) == size
        assert found.parts(0, 32) == []


def test_an_error_that_says_what_is_wrong_arrives_as_it_is_and_is_not_tried_again(address: str, tmp_path: Path) -> None:
    with workers_at(address, Tally(tmp_path, "is_damaged")) as found:
        with pytest.raises(ReadError, match=r"^frame 7 is damaged$"):
            list(found.each([7]))
    assert (tmp_path / "tried-7").read_text() == "."


def test_other_errors_are_tried_again_a_few_times(address: str, tmp_path: Path) -> None:
    with workers_at(address, Tally(tmp_path, "fails_at_first")) as found:
        assert list(found.each([3])) == [3]
    for path in tmp_path.iterdir():
        path.unlink()
    with workers_at(address, Tally(tmp_path, "fails")) as found:
        with pytest.raises(RuntimeError, match="nobody knows why"):
            list(found.each([3]))
    assert len((tmp_path / "tried-3").read_text()) == 1 + RETRIES


@pytest.mark.fault(
    fault="workers of a dask cluster die again and again of the same part of the work",
    happens="it is given up",
    user_sees="one sentence that says so, and where to look",
)
def test_a_part_that_kills_its_workers_is_given_up(address_of_others: str, tmp_path: Path) -> None:
    with workers_at(address_of_others, Tally(tmp_path, "dies")) as found:
        with pytest.raises(
            ClusterError, match=r"^workers of tcp://\S+ died 2 times at the same part of the work; their"
        ):
            list(found.each([1]))


def test_a_worker_that_does_not_see_the_files_says_so(address: str, tmp_path: Path) -> None:
    gone = MapsOnWorker(tmp_path / "frames.ome.zarr", None, DecaySettings())
    with workers_at(address, gone) as found:
        said = rf"^the worker tcp://\S+ does not see {re.escape(str(gone.frames))}; workers need the same files"
        with pytest.raises(ClusterError, match=said):
            list(found.each([()]))


def test_a_worker_with_another_version_is_refused(address: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "package_hash", lambda: "of another version")
    with workers_at(address, Tally(tmp_path)) as found:
        with pytest.raises(ClusterError, match=r"^the worker tcp://\S+ has another AtomDiffuser; install the same"):
            list(found.each([1]))
    assert not list(tmp_path.iterdir())


def free_address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{found.getsockname()[1]}"


@pytest.mark.fault(
    fault="nobody answers at the address in `dask_scheduler`",
    happens="the stage waits for 30 s",
    user_sees="one sentence with the address and what to do",
)
@pytest.mark.parametrize("address", [None, "nonsense://127.0.0.1:1"])
def test_an_address_where_nobody_answers_is_one_sentence(address: str | None, tmp_path: Path) -> None:
    address, began = address or free_address(), time.monotonic()
    said = rf"^no dask scheduler answers at {address} within 0.5 s.*; start it with `dask scheduler`, correct dask_sch"
    with pytest.raises(ClusterError, match=said):
        with workers_at(address, Tally(tmp_path), answers_within_s=0.5):
            pass
    assert time.monotonic() - began < 10
    # One that closes itself when it is collected may do so while another starts, and both wait for ever.
    left = [made for made in gc.get_objects() if type(made) is distributed.Client]
    assert all(getattr(made, "status", "closed") in ("closed", "newly-created") for made in left)


def test_a_stage_says_so_in_one_line(frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(workers_at.__wrapped__.__kwdefaults__, "answers_within_s", 0.5)
    address = free_address()
    arguments = ["register", str(frames), str(tmp_path / "p.parquet"), str(tmp_path / "t.parquet")]
    result = CliRunner().invoke(main, [*arguments, "--dask-scheduler", address])
    assert result.exit_code == 1 and result.stderr.splitlines()[-1].startswith(
        f"register: no dask scheduler answers at {address} within 0.5 s"
    )
    assert not list(tmp_path.iterdir())
    refused = CliRunner().invoke(main, [*arguments, "--dask-scheduler", "gpu-node"])
    assert refused.exit_code == 2
    assert "'gpu-node' is not an address" in " ".join(refused.stderr.replace("│", " ").split())


@pytest.mark.parametrize("fault", [FULL, BROKEN])
def test_pairs_go_on_with_the_processor_of_a_worker(frames: Path, fault: Exception, monkeypatch, caplog) -> None:
    opened = register_stage.open_source

    def made_up_gpu(*arguments: object) -> tuple[FrameSeries, FrameSource]:
        series, source = opened(frames, "cpu", "register")
        source.device = torch.device("cuda")
        return series, source

    monkeypatch.setattr(register_stage, "open_source", made_up_gpu)
    asked = []

    def work(source: FrameSource, pairs: list, advance: Callable) -> str:
        asked.append(source.device.type)
        if source.device.type == "cuda":
            raise fault
        return "done"

    do = PairsOnWorker(frames, None, "cpu")()
    assert [do((work, [])) for _ in range(2)] == [("done", "cpu")] * 2
    assert asked == ["cuda", "cpu", "cpu"] and caplog.text.count("the processor does the rest") == 1
    with pytest.raises(KeyError, match="not of the GPU"):
        do((lambda *_: {}["not of the GPU"], []))


def test_a_scheduler_without_workers_is_one_sentence(tmp_path: Path) -> None:
    with distributed.LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=":0") as empty:
        said = r"^the dask scheduler at tcp://\S+ has had no worker for 0.5 s; start one with `dask worker tcp://\S+`$"
        with pytest.raises(ClusterError, match=said):
            with workers_at(empty.scheduler_address, Tally(tmp_path), answers_within_s=0.5):
                pass


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match=r"^dask_scheduler needs .*: pip install 'atomdiffuser\[distributed\]'$"):
        with workers_at("tcp://127.0.0.1:8786", Tally(tmp_path)):
            pass


@pytest.mark.fault(
    fault="a dask scheduler ends while it has work",
    happens="the stage ends",
    user_sees="one sentence with its address",
)
def test_the_commands_of_the_documentation_and_a_scheduler_that_ends(tmp_path: Path) -> None:
    address = free_address()
    dask, port = str(Path(sys.executable).with_name("dask")), address.rpartition(":")[2]
    commands = (
        [dask, "scheduler", "--host", "127.0.0.1", "--port", port, "--dashboard-address", ":0"],
        [dask, "worker", address, "--nthreads", "1", "--nworkers", "1", "--dashboard-address", ":0"],
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    started = []
    try:
        for command in commands:
            started.append(subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env=environment))
        with workers_at(address, Tally(tmp_path, "waits"), answers_within_s=120) as found:
            found.answers_within_s = 5.0
            results = found.each(range(4))
            assert next(results) == 0
            started[0].kill()
            with pytest.raises(ClusterError, match=rf"^the dask scheduler at {address} has gone while it had work"):
                list(results)
    finally:
        for process in started:
            process.terminate()
            process.wait(60)


@pytest.mark.parametrize("text", ["gpu-node", "gpu-node:8786", "tcp://gpu-node", "tcp://a b:1", "tcp://a:1/x"])
def test_what_is_no_address_is_refused_before_any_job(text: str) -> None:
    with pytest.raises(
        SettingsError, match=f"^dask_scheduler: '{text}' is not an address; expected one such as tcp://"
    ):
        read_config({"dask_scheduler": text})
    for good in ("tcp://gpu-node:8786", "tls://10.0.0.1:1", "tcp://[::1]:8786"):
        assert require_address(good) == good
        read_config({"dask_scheduler": good})
    read_config({"dask_scheduler": None})


def test_nothing_of_dask_is_imported_without_an_address() -> None:
    stages = "import atomdiffuser.cli, atomdiffuser.stages.register, atomdiffuser.stages.decay, sys"
    code = f"{stages}; print(sorted({{'distributed', 'dask', 'tornado'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

"""Compiled loops: the same numbers as tensor operations, with any threads, and with no place to keep them."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import scipy.ndimage
import torch
from tensor_operations import both_ways

from atomdiffuser import compiled, geometry
from atomdiffuser import interpolation as ip


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(2, 31, 45), (1, 3, 70), (3, 64, 5)])
@pytest.mark.parametrize("taps", [3, 5, 9, 21])
def test_convolutions_agree_also_where_the_kernel_is_longer_than_the_image(shape, taps: int) -> None:
    image, along_y, along_x = random(*shape), random(taps, seed=1), random(taps, seed=2)
    by_loops, by_tensors = both_ways(lambda: ip.filter_separable(image, along_y, along_x))
    assert torch.allclose(by_loops, by_tensors, rtol=1e-5)
    expected = image.numpy()
    for kernel, axis in ((along_y, 1), (along_x, 2)):
        expected = scipy.ndimage.convolve1d(expected, kernel.numpy(), axis, mode="reflect")
    assert np.allclose(by_loops, expected, rtol=1e-5)


def test_splines_agree_inside_at_the_edges_and_far_outside() -> None:
    image = random(2, 40, 53)
    y, x = (random(2, 30, 31, seed=k) * 80 - 15 for k in (1, 2))
    y[0, 0, :3], x[0, 0, :3] = torch.tensor([38.0, 39.0, 1e12]), torch.tensor([51.0, 52.0, 3.0])
    by_loops, by_tensors = both_ways(lambda: ip.sample_spline(image, y, x))
    assert (by_loops - by_tensors).abs().max() < 3e-5  # the tensor operations' look-ups are that exact
    inner = (y[0] > 2) & (y[0] < 37) & (x[0] > 2) & (x[0] < 50)
    expected = scipy.ndimage.map_coordinates(image[0].double(), [y[0][inner], x[0][inner]], prefilter=False)
    assert inner.sum() > 100 and np.abs(by_loops[0][inner].numpy() - expected).max() < 3e-6


@pytest.mark.parametrize("shift", [(0.3, -0.4), (37.2, -44.0), (500.0, 0.0)])
def test_a_grid_is_sampled_where_its_points_are(shift) -> None:
    """Four affines on two images; the grid has unequal steps and may lie beside the image."""
    image = random(2, 40, 53)
    turn = torch.tensor([[1.02, 0.05, 0.0], [-0.04, 0.97, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    affines = geometry.translation(torch.tensor([shift, (1.0, 2.0), (-3.0, 0.5), (0.0, 0.0)]).double()) @ turn
    rows, columns = torch.tensor([0.0, 1.5, 9.0, 39.0]).double(), torch.tensor([-4.0, 0.5, 7.0, 30.0, 52.0]).double()
    of = np.array([1, 0, 0, 1])
    by_loops, by_tensors = both_ways(lambda: ip.sample_spline_grid(image, affines, rows, columns, of))
    y, x = ip.affine_coordinates_at(affines, rows, columns)
    each = ip.sample_spline(image[torch.from_numpy(of)], y, x)
    assert (by_loops - by_tensors).abs().max() < 3e-5 and (by_loops - each).abs().max() < 3e-5
    assert each[1:].abs().min() < 0.1 < each[1:].abs().max()


def test_a_place_that_is_no_number_has_no_value() -> None:
    y = torch.tensor([[[5.0, torch.nan, torch.inf]]])
    value = ip.sample_spline(random(1, 12, 12), y, torch.full_like(y, 5.0))
    assert torch.isfinite(value[0, 0, 0]) and value[0, 0, 1].isnan() and value[0, 0, 2] == 0


def test_where_gradients_are_wanted_there_are_some() -> None:
    image = random(1, 12, 12).requires_grad_()
    ip.spline_coefficients(image)[0, 5, 5].backward()
    assert image.grad is not None and image.grad.argmax() == 5 * 12 + 5


def test_parts_by_many_threads_are_the_whole(four_threads) -> None:
    seen, who = np.zeros(1000, int), set()

    def work(first: int, last: int) -> None:
        seen[first:last] += 1
        who.add(threading.get_ident())

    compiled.in_parts(work, 1000, 4 * compiled.WORTH_SPLITTING)
    assert (seen == 1).all() and len(who) > 1
    compiled.in_parts(work, 1000, 10)
    assert (seen == 2).all()
    compiled.in_parts(work, 0, 0)
    image = random(1, 1100, 1200)
    by_loops, by_tensors = both_ways(lambda: ip.spline_coefficients(image))
    assert torch.allclose(by_loops, by_tensors, atol=1e-5)


def test_what_goes_wrong_in_a_part_is_told_once_all_have_ended(four_threads) -> None:
    ended = []

    def work(first: int, last: int) -> None:
        if first > 0:
            raise ValueError("no")
        ended.append(last)

    with pytest.raises(ValueError, match="no"):
        compiled.in_parts(work, 100, 4 * compiled.WORTH_SPLITTING)
    assert ended == [25]


@pytest.mark.parametrize("error", [RuntimeError("no locator available"), ImportError("needs NumPy 2.4 or less")])
def test_tensor_operations_serve_where_numba_cannot(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be kept, or Numba refuses: seconds of compiling in each process are worth nothing."""
    import numba

    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(numba, "njit", refuse)
    assert not compiled._available.__wrapped__()
    monkeypatch.undo()
    assert compiled._available.__wrapped__()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), pickle.UnpicklingError("truncated")])
def test_what_cannot_be_kept_or_read_any_more_is_compiled_for_the_process(error, monkeypatch) -> None:
    def fails(function):
        def kept(*arguments):
            raise error

        return kept

    monkeypatch.setattr(compiled, "_kept", fails)
    add_one = compiled.compiled(lambda a: a + 1)
    assert add_one(2) == 3 and add_one(3) == 4
    assert not compiled._available.__wrapped__()


def test_places_and_images_that_do_not_belong_together_are_refused() -> None:
    image = random(2, 12, 12)
    with pytest.raises(ValueError, match="expected the same"):
        ip.sample_spline(image, torch.zeros(2, 3, 3), torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="3 affines and 2 images"):
        ip.sample_spline_grid(image, geometry.identity(3), torch.zeros(1).double(), torch.zeros(1).double())


@pytest.mark.parametrize(("value", "expected"), [("0", "False"), ("1", "True")])
def test_a_variable_keeps_to_tensor_operations(value: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.SWITCH, value)
    code = "import torch; from atomdiffuser.compiled import compiled_here; print(compiled_here(torch.device('cpu')))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == expected
    assert not compiled.compiled_here(torch.device("cuda"))

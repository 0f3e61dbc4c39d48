"""Sums over the pixels of atoms, the pieces that regions are made of, for many images of one raw frame.

Large frames are taken some rows at a time: what is made of them on the way then stays in the processor's cache, and
whole images of it are never held. In a row, pixels of one atom mostly follow each other: each such run is summed first,
and the runs of an atom after that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from atomdiffuser.damage.regions import RegionSet

STRIP_PX = 2**16


def strips(image: Tensor) -> Iterator[slice]:
    """Rows of images like this one (1, Y, X), some after the other; all at once on a GPU."""
    height, width = image.shape[-2:]
    rows = height if image.is_cuda else max(1, STRIP_PX // width)
    for at in range(0, height, rows):
        yield slice(at, at + rows)


def atom_image(regions: RegionSet, device: torch.device) -> Tensor:
    """(Y, X) int32: the atom of each pixel of the reference grid, and the number of atoms where there is none."""
    none = regions.membership.shape[1]
    return torch.from_numpy(np.where(regions.atoms >= 0, regions.atoms, none).astype(np.int32)).to(device)


def atoms_of_pixels(y: Tensor, x: Tensor, usable: Tensor, atoms: Tensor, none: int) -> Tensor:
    """Atom number of each raw pixel, int32, where it is `usable`; `none` elsewhere.

    (y, x) are the pixels' places on the reference grid [px], whose `atoms` are as from `atom_image`.
    """
    height, width = atoms.shape
    place = y.round().clamp_(0, height - 1).long().mul_(width)
    place.add_(x.round().clamp_(0, width - 1).long())
    return torch.where(usable, atoms.take(place), none)


def sum_by_atom(images: Iterable[Tensor], label: Tensor, n_atoms: int) -> np.ndarray:
    """Sums (images, atoms) of images over the pixels of each atom, as `atoms_of_pixels` labels them.

    Images may be made one by one, when they are due.
    """
    if label.is_cuda:
        count = lambda image: torch.bincount(label.flatten(), image.flatten().double(), minlength=n_atoms + 1)
        return torch.stack([count(image)[:n_atoms] for image in images]).cpu().numpy()
    flat = label.flatten().numpy()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    runs = [np.add.reduceat(image.flatten().numpy(), starts, dtype=np.float64) for image in images]
    return np.stack([np.bincount(flat[starts], run, minlength=n_atoms + 1)[:n_atoms] for run in runs])


def fit_images(values: Tensor, parts: Sequence[Tensor], variance: Tensor) -> Iterator[Tensor]:
    """Images whose sums a least-squares fit of `parts` to `values` needs, in the order that `fit_sums` expects."""
    for part in parts:
        yield values * part
    for i, first in enumerate(parts):
        for second in parts[i:]:
            product = first * second
            yield product
            yield product.mul_(variance)


def fit_sums(sums: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of n fits of p parts, from sums (p + p·(p + 1), n) of `fit_images`: the normal matrices (n, p, p), the same with
    the variance, and the right-hand sides (n, p).
    """
    normal, spread = (np.empty((sums.shape[1], p, p)) for _ in range(2))
    pairs = sums[p:].reshape(-1, 2, sums.shape[1])
    for (i, j), (plain, weighted) in zip(zip(*np.triu_indices(p), strict=True), pairs, strict=True):
        normal[:, i, j] = normal[:, j, i] = plain
        spread[:, i, j] = spread[:, j, i] = weighted
    return normal, spread, sums[:p].T

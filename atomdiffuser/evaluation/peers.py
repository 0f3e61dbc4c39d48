"""Registration tools of the field, each in its best-documented setting, behind one call.

A method takes two frames (Y, X) float32 and gives the affine moving_from_reference (3, 3) that acts on (y, x, 1), as
everywhere here, or None where it says that it found none. What is not installed is named, not fatal:
`pip install atomdiffuser[peers]` brings all of them.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Estimate = Callable[[np.ndarray, np.ndarray], np.ndarray | None]

ECC_STEPS, ECC_TOLERANCE, ECC_FILTER_PX = 500, 1e-8, 5
SUB_PIXEL_FACTOR = 100
ELASTIX_STEPS = "512"


@dataclass(frozen=True)
class Peer:
    """A tool: the module it needs, the motion it can find, how it is set up here, and the function that makes it."""

    name: str
    module: str
    motion: str
    setting: str
    make: Callable[[], Estimate]


def available_peers() -> tuple[dict[str, Estimate], dict[str, str]]:
    """Methods that are installed, by name, and for the others why they are not there."""
    found, absent = {}, {}
    for peer in PEERS:
        try:
            importlib.import_module(peer.module)
            found[peer.name] = peer.make()
        except ImportError as error:
            absent[peer.name] = str(error)
    return found, absent


def _opencv_ecc(*, started: bool) -> Callable[[], Estimate]:
    def make() -> Estimate:
        import cv2

        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ECC_STEPS, ECC_TOLERANCE)

        def estimate(reference: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
            warp = np.eye(2, 3, dtype=np.float32)
            if started:
                window = cv2.createHanningWindow(reference.shape[::-1], cv2.CV_32F)
                warp[:, 2] = cv2.phaseCorrelate(reference, moving, window)[0]
            try:
                _, warp = cv2.findTransformECC(
                    reference, moving, warp, cv2.MOTION_AFFINE, criteria, None, ECC_FILTER_PX
                )
            except cv2.error:  # "The algorithm stopped before its convergence"
                return None
            return from_xy(np.vstack([warp, [0, 0, 1]]))

        return estimate

    return make


def _stackreg() -> Estimate:
    from pystackreg import StackReg

    return lambda reference, moving: from_xy(StackReg(StackReg.AFFINE).register(reference, moving))


def _elastix() -> Estimate:
    import itk

    parameters = itk.ParameterObject.New()
    chosen = parameters.GetDefaultParameterMap("affine")
    chosen["MaximumNumberOfIterations"] = [ELASTIX_STEPS]
    chosen["AutomaticTransformInitialization"] = ["false"]  # by moments or centres: wrong for a cut-out of a lattice
    parameters.AddParameterMap(chosen)

    def estimate(reference: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
        try:
            _, result = itk.elastix_registration_method(
                itk.image_view_from_array(reference), itk.image_view_from_array(moving), parameter_object=parameters,
                log_to_console=False,
            )  # fmt: skip
        except RuntimeError:  # too few samples map inside the moving image
            return None
        numbers = [float(v) for v in result.GetParameter(0, "TransformParameters")]
        centre = np.array([float(v) for v in result.GetParameter(0, "CenterOfRotationPoint")])
        linear, shift = np.reshape(numbers[:4], (2, 2)), np.array(numbers[4:])
        affine = np.eye(3)
        affine[:2, :2], affine[:2, 2] = linear, shift + centre - linear @ centre
        return from_xy(affine)

    return estimate


def _kornia() -> Estimate:
    import torch
    from kornia.geometry import ImageRegistrator

    def estimate(reference: np.ndarray, moving: np.ndarray) -> np.ndarray:
        scale = float(max(reference.max(), moving.max()))
        source, target = (torch.from_numpy(image / scale)[None, None] for image in (reference, moving))
        found = ImageRegistrator("similarity").register(source, target).detach()[0].double().numpy()
        height, width = reference.shape
        to_unit = np.array([[2 / (width - 1), 0, -1], [0, 2 / (height - 1), -1], [0, 0, 1]])
        # the model says where a pixel of the target is looked up in the source
        return from_xy(np.linalg.inv(np.linalg.inv(to_unit) @ found @ to_unit))

    return estimate


def _scikit_image() -> Estimate:
    from skimage.registration import phase_cross_correlation

    def estimate(reference: np.ndarray, moving: np.ndarray) -> np.ndarray:
        back, _, _ = phase_cross_correlation(reference, moving, upsample_factor=SUB_PIXEL_FACTOR, normalization=None)
        return _shift(-np.asarray(back))

    return estimate


def _hyperspy() -> Estimate:
    import hyperspy.api as hs

    def estimate(reference: np.ndarray, moving: np.ndarray) -> np.ndarray:
        signal = hs.signals.Signal2D(np.stack([reference, moving]))
        with _silent():
            back = signal.estimate_shift2D(
                reference="current", sub_pixel_factor=SUB_PIXEL_FACTOR, hanning=True, medfilter=True,
                show_progressbar=False,
            )  # fmt: skip
        return _shift(np.asarray(back)[1])

    return estimate


def _shift(shift_px: np.ndarray) -> np.ndarray:
    affine = np.eye(3)
    affine[:2, 2] = shift_px
    return affine


def from_xy(affine: np.ndarray) -> np.ndarray:
    """The affine on (y, x, 1) from one on (x, y, 1)."""
    order = [1, 0, 2]
    return np.asarray(affine, dtype=float)[np.ix_(order, order)]


@contextlib.contextmanager
def _silent():
    logger = logging.getLogger("hyperspy")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


PEERS = (
    Peer("OpenCV ECC", "cv2", "affine", f"findTransformECC, {ECC_FILTER_PX} px Gaussian, from the identity",
         _opencv_ecc(started=False)),
    Peer("OpenCV ECC, started", "cv2", "affine", "the same, from phaseCorrelate under a Hann window",
         _opencv_ecc(started=True)),
    Peer("pystackreg", "pystackreg", "affine", "StackReg.AFFINE", _stackreg),
    Peer("elastix", "itk.elxParameterObjectPython", "affine",
         f"default affine parameter map (mutual information, 4 resolutions), {ELASTIX_STEPS} steps each", _elastix),
    Peer("kornia", "kornia", "similarity", "ImageRegistrator, defaults", _kornia),
    Peer("scikit-image", "skimage", "translation",
         f"phase_cross_correlation, upsample_factor {SUB_PIXEL_FACTOR}, normalization None (advised for noise)",
         _scikit_image),
    Peer("HyperSpy", "hyperspy", "translation",
         f"estimate_shift2D, sub_pixel_factor {SUB_PIXEL_FACTOR}, hanning and medfilter", _hyperspy),
)  # fmt: skip
"""In the order of the tables."""

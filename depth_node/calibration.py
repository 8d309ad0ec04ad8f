"""Metric scale found once: from a measured distance, a chessboard or an AprilTag.

Each way gives a `Reference`: a part of the picture whose true depth is known.  A `Sample` compares
the network's depth there, `fit` turns samples into scale and shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import math

import cv2
from depth_node.camera import Camera
from depth_node.filters import FilterSettings
from depth_node.model_card import ModelCard
import numpy as np
from numpy.typing import NDArray

METHODS = ('distance', 'chessboard', 'tag')
# What the pipeline of a calibration filters.  No range: the card's limits are metres after the
# correction, and may cut off a reference that the factor brings back.  No mean over time: each
# picture has to speak for itself.
FILTERS = FilterSettings(near_m=0.0, far_m=math.inf, temporal='off')
TAG_FAMILIES = {'tag36h11': 'DICT_APRILTAG_36h11', 'tag25h9': 'DICT_APRILTAG_25h9',
                'tag16h5': 'DICT_APRILTAG_16h5', 'aruco4x4': 'DICT_4X4_50',
                'aruco6x6': 'DICT_6X6_250'}
# A factor beyond this is a distance in the wrong unit rather than a network's error.
LOW, HIGH = 0.05, 20.0
# Samples of one calibration that disagree by more than this (relative, robust) are refused.
MAX_SPREAD = 0.15
_MIN_PIXELS = 20
_MIN_REACH = 1.5  # largest over smallest true distance, from which on a shift can be told apart
_MIN_FOR_SHIFT = 4  # samples; a line through two of three says nothing about the third
_MOST_PAIRS = 2000
_FOLDS = 10


class CalibrationError(ValueError):
    """A calibration that cannot be made; the text says what was found and what to do."""


@dataclass(frozen=True)
class Reference:
    """Part of a rectified picture whose true depth is known.

    Attributes:
        method: one of `METHODS`.
        depth: (H, W) float32 true depth along the optical axis, metres; NaN outside of the part.
        outline: (N, 2) float32 corners (u, v) of the part, pixels, for people.
        words: what it is, for people.
    """

    method: str
    depth: NDArray[np.float32]
    outline: NDArray[np.float32]
    words: str


@dataclass(frozen=True)
class Sample:
    """The network's depth against the truth, over one reference in one picture.

    Attributes:
        predicted_m: median of the network's depth, before any correction.
        true_m: the truth there: predicted_m times the median of truth / prediction.
        spread: relative, robust standard deviation of truth / prediction inside the reference.
        pixels: how many were compared.
    """

    predicted_m: float
    true_m: float
    spread: float
    pixels: int


@dataclass(frozen=True)
class Result:
    """What a calibration found: depth = scale * (the network's depth) + shift.

    Attributes:
        scale: factor.
        shift: metres.
        spread: relative, robust standard deviation of the corrected depth from the truth, over
            what was compared (between the samples and inside of them; with a shift between
            samples that it was not fitted to).  Not known from it: an error that all samples
            share, the tape measure's say, and other places.
        reach_m: smallest and largest true distance of the samples; None where a sensor's factors
            were averaged.
        residuals: relative error of every sample after the correction.
        before: median absolute relative error of the samples without the correction.
        notes: what the user should know.
    """

    scale: float
    shift: float
    spread: float
    reach_m: tuple[float, float] | None
    residuals: tuple[float, ...]
    before: float
    notes: tuple[str, ...] = ()


def known_distance(camera: Camera, distance_m: float,
                   at: tuple[float, float] | None = None) -> Reference:
    """Return the reference of a distance that was measured with a tape.

    Args:
        camera: rectified camera of the picture.
        distance_m: from the lens to the thing seen at `at`, as the tape runs (ray length).
        at: its pixel (u, v) of the rectified picture; None is its middle.

    Raises:
        CalibrationError: a distance that is not positive, or a pixel outside of the picture.
    """
    _check_distance(distance_m)
    height, width = camera.size_hw
    u, v = at if at is not None else ((width - 1) / 2, (height - 1) / 2)
    if not (0 <= u < width and 0 <= v < height):
        raise CalibrationError(f'pixel ({u:g}, {v:g}) lies outside of the picture of '
                               f'{width}x{height}')
    ray = math.hypot((u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, 1.0)
    radius = max(4.0, 0.02 * width)
    vv, uu = np.mgrid[0:height, 0:width].astype(np.float32)
    depth = np.full((height, width), np.nan, np.float32)
    depth[(uu - u) ** 2 + (vv - v) ** 2 <= radius**2] = distance_m / ray
    turn = np.linspace(0, 2 * math.pi, 33)
    outline = np.stack([u + radius * np.cos(turn), v + radius * np.sin(turn)], axis=1)
    return Reference('distance', depth, outline.astype(np.float32),
                     f'{distance_m:g} m to the thing at pixel ({u:.0f}, {v:.0f})')


def rectified_pixel(camera: Camera, at: tuple[float, float]) -> tuple[float, float]:
    """Return where the rectified picture shows what a camera's own picture shows at a pixel.

    Args:
        camera: of the picture as it was taken.
        at: pixel (u, v) of that picture.
    """
    if not camera.is_distorted:
        return at
    undistort = (cv2.fisheye.undistortPoints if camera.distortion_model == 'equidistant'
                 else cv2.undistortPoints)
    moved = undistort(np.array([[at]], np.float64), camera.K, np.asarray(camera.D, np.float64),
                      R=np.asarray(camera.R, np.float64).reshape(3, 3), P=camera.rectified().K)
    return float(moved[0, 0, 0]), float(moved[0, 0, 1])


def chessboard(rgb: NDArray[np.uint8], camera: Camera, corners_wh: tuple[int, int],
               square_m: float) -> Reference | None:
    """Return the reference of a chessboard, None where it is not seen.

    All of its inner corners must be inside of the picture.  It may stand on its head or be
    mirrored: its plane is the same.

    Args:
        rgb: (H, W, 3) rectified picture.
        camera: its rectified camera.
        corners_wh: inner corners along a row and along a column.
        square_m: side of a square, metres.

    Raises:
        CalibrationError: a board that cannot be, or that is seen too small or too obliquely.
    """
    columns, rows = corners_wh
    _check_board(corners_wh, square_m)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    found, corners = cv2.findChessboardCornersSB(grey, (columns, rows))
    if not found:
        return None
    grid = np.zeros((rows * columns, 3), np.float32)
    grid[:, :2] = np.mgrid[0:columns, 0:rows].T.reshape(-1, 2) * square_m
    outer = np.array([[-0.5, -0.5], [columns - 0.5, -0.5], [columns - 0.5, rows - 0.5],
                      [-0.5, rows - 0.5]], np.float32) * np.float32(square_m)
    return _plane_reference(
        'chessboard', camera, grid, corners.reshape(-1, 2), outer,
        f'chessboard of {columns}x{rows} corners, {1e3 * square_m:g} mm')


def tag(rgb: NDArray[np.uint8], camera: Camera, size_m: float,
        family: str = 'tag36h11') -> Reference | None:
    """Return the reference of the largest AprilTag or ArUco marker, None where none is seen.

    Args:
        rgb: (H, W, 3) rectified picture.
        camera: its rectified camera.
        size_m: side of the tag's black square, metres.
        family: one of `TAG_FAMILIES`.

    Raises:
        CalibrationError: an unknown family, a size that is not positive, an OpenCV without the
            module aruco, or a tag that is seen too small or too obliquely.
    """
    _check_tag(size_m, family)
    dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, TAG_FAMILIES[family]))
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    if hasattr(cv2.aruco, 'ArucoDetector'):
        settings = cv2.aruco.DetectorParameters()
        settings.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
        found, numbers, _ = cv2.aruco.ArucoDetector(dictionary, settings).detectMarkers(grey)
    else:  # OpenCV before 4.7
        settings = cv2.aruco.DetectorParameters_create()
        settings.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
        found, numbers, _ = cv2.aruco.detectMarkers(grey, dictionary, parameters=settings)
    if not found:
        return None
    areas = [cv2.contourArea(item.reshape(-1, 2)) for item in found]
    best = int(np.argmax(areas))
    half = size_m / 2
    square = np.array([[-half, -half], [half, -half], [half, half], [-half, half]], np.float32)
    grid = np.concatenate([square, np.zeros((4, 1), np.float32)], axis=1)
    return _plane_reference('tag', camera, grid, found[best].reshape(-1, 2), square,
                            f'{family} number {int(np.ravel(numbers)[best])}, {size_m:g} m')


def _check_distance(distance_m: float) -> None:
    if not (math.isfinite(distance_m) and distance_m > 0):
        raise CalibrationError(f'distance {distance_m} m, expected more than 0')


def _check_board(corners_wh: tuple[int, int], square_m: float) -> None:
    if min(corners_wh) < 3 or not (math.isfinite(square_m) and square_m > 0):
        raise CalibrationError(
            f'chessboard of {corners_wh[0]}x{corners_wh[1]} inner corners, squares of {square_m} '
            'm: expected at least 3 corners both ways, and a positive size in metres')


def _check_tag(size_m: float, family: str) -> None:
    if family not in TAG_FAMILIES:
        raise CalibrationError(f'tag family {family!r}, expected one of '
                               f'{", ".join(TAG_FAMILIES)}')
    if not (math.isfinite(size_m) and size_m > 0):
        raise CalibrationError(f'tag of {size_m} m, expected the side of its black square, > 0')
    if not hasattr(cv2, 'aruco'):
        raise CalibrationError(f'OpenCV {cv2.__version__} here has no module aruco, which finds '
                               'tags; use the method distance or chessboard')


def check_model(card: ModelCard) -> None:
    """Refuse a network whose depth no fixed factor turns into metres.

    Raises:
        CalibrationError: its output is relative.
    """
    if not card.output.metric:
        raise CalibrationError(
            f'model {card.name} knows depth only up to a scale and a shift that change from '
            f'picture to picture ({card.output.kind}): what one picture tells does not hold for '
            'the next; use scale.source points or ground, or a metric model')


def _plane_reference(method: str, camera: Camera, grid: NDArray[np.float32],
                     corners: NDArray[np.float32], outer: NDArray[np.float32],
                     words: str) -> Reference:
    """Return the depth of a plane through corners of known place on it."""
    pinhole = camera.rectified()
    solved, turn, place = cv2.solvePnP(grid, corners.astype(np.float32), pinhole.K, None,
                                       flags=cv2.SOLVEPNP_IPPE)
    if not solved:
        raise CalibrationError(f'{words}: no plane fits its corners; look at it less obliquely')
    rotation, _ = cv2.Rodrigues(turn)
    normal = rotation[:, 2]
    offset = float(normal @ place[:, 0])
    outline = cv2.projectPoints(np.concatenate([outer, np.zeros((4, 1), np.float32)], axis=1),
                                turn, place, pinhole.K, None)[0].reshape(-1, 2)
    height, width = camera.size_hw
    inside = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(inside, np.round(outline).astype(np.int32), 1)
    # the network blurs depth across the board's border: compare the inner part only
    side = math.sqrt(max(cv2.contourArea(outline.astype(np.float32)), 1.0))
    inside = cv2.erode(inside, np.ones((2 * max(1, round(0.08 * side)) + 1,) * 2, np.uint8))
    vv, uu = np.mgrid[0:height, 0:width]
    slope = (normal[0] * (uu - pinhole.cx) / pinhole.fx
             + normal[1] * (vv - pinhole.cy) / pinhole.fy + normal[2])
    with np.errstate(divide='ignore', invalid='ignore'):
        depth = (offset / slope).astype(np.float32)
    depth[(inside == 0) | ~(depth > 0)] = np.nan
    if np.count_nonzero(np.isfinite(depth)) < _MIN_PIXELS:
        raise CalibrationError(f'{words}: seen, but too small or too obliquely to compare; go '
                               'nearer')
    return Reference(method, depth, outline.astype(np.float32),
                     f'{words}, {float(np.nanmedian(depth)):.3f} m away')


def compare(depth: NDArray[np.float32], reference: Reference) -> Sample:
    """Compare the network's depth with a reference.

    Args:
        depth: (H, W) the network's own depth, metres, not finite where unknown.
        reference: of the same picture.

    Raises:
        CalibrationError: sizes differ, or there is too little depth inside the reference.
    """
    if depth.shape != reference.depth.shape:
        raise CalibrationError(f'depth of {depth.shape}, reference of {reference.depth.shape}')
    both = np.isfinite(depth) & (depth > 0) & np.isfinite(reference.depth)
    wanted = int(np.count_nonzero(np.isfinite(reference.depth)))
    count = int(np.count_nonzero(both))
    if count < max(_MIN_PIXELS, wanted // 4):
        raise CalibrationError(
            f'{count} of the {wanted} pixels of {reference.words} have a depth: too few; go '
            'nearer, or look at it less obliquely')
    logs = np.log(reference.depth[both].astype(np.float64) / depth[both])
    middle = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    predicted = float(np.median(depth[both]))
    return Sample(predicted, predicted * math.exp(middle), spread, count)


def fit(samples: Sequence[Sample], *, shift: bool | None = None) -> Result:
    """Fit scale, and shift where the samples can tell it, to samples.

    The factor is the median of truth / prediction.  With a shift, depth = scale * prediction +
    shift is the line through two samples of the least median relative error (Rousseeuw, Least
    median of squares regression, JASA 1984: up to half of the samples may be wrong), refined by
    least squares over the samples that agree with it.

    Args:
        samples: at least one.
        shift: True asks for a shift, False forbids it, None takes it where the distances differ
            by half at least and it halves the error at samples that it was not fitted to.

    Raises:
        CalibrationError: no samples, samples that contradict each other, or a factor that no
            network is wrong by.
    """
    if not samples:
        raise CalibrationError('nothing to calibrate with: no picture showed the reference')
    predicted = np.array([item.predicted_m for item in samples], np.float64)
    true = np.array([item.true_m for item in samples], np.float64)
    scale, moved = math.exp(float(np.median(np.log(true / predicted)))), 0.0
    residuals = scale * predicted / true - 1
    between = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    reach = float(true.max() / true.min())
    notes: list[str] = []
    if shift is not False and len(samples) >= _MIN_FOR_SHIFT and reach >= _MIN_REACH:
        line, unseen = _line(predicted, true), _unseen_errors(predicted, true)
        if line is not None and (shift or np.median(unseen) < 0.5 * np.median(
                np.abs(residuals))):
            scale, moved = line
            residuals = scale * predicted / true + moved / true - 1
            between = 1.4826 * float(np.median(unseen))
    elif shift:
        raise CalibrationError(
            f'a shift needs {_MIN_FOR_SHIFT} samples at distances that differ by half at least; '
            f'here are {len(samples)} from {true.min():.2f} to {true.max():.2f} m')
    _check_factor(scale)
    if not between <= MAX_SPREAD:
        raise CalibrationError(
            f'the pictures contradict each other: they differ by {between:.0%} (robust standard '
            f'deviation), expected at most {MAX_SPREAD:.0%}; is the reference the same in all of '
            'them, and does it fill enough of the picture?')
    # repeated pictures of one place share the network's error there: no division by their number
    spread = math.hypot(between, float(np.median([item.spread for item in samples])))
    if len(samples) < 3:
        notes.append('fewer than 3 pictures: nothing tells how far they can be trusted')
    if reach < _MIN_REACH:
        notes.append(f'all samples lie near {np.median(true):.2f} m: elsewhere the scale may '
                     'differ')
    if moved < 0:
        notes.append(f'with this shift nothing nearer than {-moved / scale:.2f} m by the network '
                     'has a depth')
    return Result(scale, moved, spread, (float(true.min()), float(true.max())),
                  tuple(float(item) for item in residuals),
                  float(np.median(np.abs(predicted / true - 1))), tuple(notes))


def average(factors: Sequence[float], uncertainties: Sequence[float]) -> Result:
    """Return the factor that a sensor found again and again.

    Args:
        factors: truth / the network's depth, at least one.
        uncertainties: the sensor's own relative standard uncertainty of each; NaN is unknown.

    Raises:
        CalibrationError: none, ones that contradict each other, or a factor that no network is
            wrong by.
    """
    if not factors:
        raise CalibrationError('nothing to calibrate with: the sensor found no scale')
    logs = np.log(np.asarray(factors, np.float64))
    middle = float(np.median(logs))
    scale = math.exp(middle)
    _check_factor(scale)
    between = 1.4826 * float(np.median(np.abs(logs - middle)))
    if between > MAX_SPREAD:
        raise CalibrationError(
            f"the sensor's factors differ by {between:.0%} (robust standard deviation), expected "
            f'at most {MAX_SPREAD:.0%}; wait until they settle')
    known = [item for item in uncertainties if math.isfinite(item)]
    return Result(scale, 0.0, math.hypot(between, float(np.median(known)) if known else 0.0),
                  None, tuple(float(item) for item in np.expm1(middle - logs)),
                  float(np.median(np.abs(np.expm1(-logs)))))


def _check_factor(scale: float) -> None:
    if not LOW <= scale <= HIGH:
        raise CalibrationError(
            f'the factor would be {scale:.3g}, expected {LOW:g} to {HIGH:g}: is the size or the '
            'distance given in metres, and does the camera have the right intrinsics?')


def _line(predicted: NDArray[np.float64], true: NDArray[np.float64]
          ) -> tuple[float, float] | None:
    """Return scale and shift, None where no two samples give a positive scale."""
    first, second = np.triu_indices(len(true), 1)
    if len(first) > _MOST_PAIRS:
        chosen = np.random.default_rng(0).choice(len(first), _MOST_PAIRS, replace=False)
        first, second = first[chosen], second[chosen]
    with np.errstate(divide='ignore', invalid='ignore'):
        scales = (true[first] - true[second]) / (predicted[first] - predicted[second])
    usable = np.isfinite(scales) & (scales > 0)
    if not usable.any():
        return None
    first, scales = first[usable], scales[usable]
    shifts = true[first] - scales * predicted[first]
    errors = np.abs((scales[:, None] * predicted + shifts[:, None]) / true - 1)
    medians = np.median(errors, axis=1)
    best = int(np.argmin(medians))
    agree = errors[best] <= max(2.5 * 1.4826 * float(medians[best]), 1e-6)
    rows = np.stack([predicted, np.ones_like(true)], axis=1)[agree] / true[agree, None]
    if np.ptp(predicted[agree]) > 0:
        found = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
        if found[0] > 0:
            return float(found[0]), float(found[1])
    return float(scales[best]), float(shifts[best])


def _unseen_errors(predicted: NDArray[np.float64], true: NDArray[np.float64]
                   ) -> NDArray[np.float64]:
    """Return each sample's relative error with a line that was fitted to others."""
    errors = np.full(len(true), np.inf)
    folds = np.arange(len(true)) % min(len(true), _FOLDS)
    for fold in range(int(folds.max()) + 1):
        left_out = folds == fold
        line = _line(predicted[~left_out], true[~left_out])
        if line is not None:
            errors[left_out] = np.abs(
                (line[0] * predicted[left_out] + line[1]) / true[left_out] - 1)
    return errors


@dataclass(frozen=True)
class Settings:
    """What is looked for in the pictures.

    Attributes:
        method: one of `METHODS`.
        distance_m: with `distance`: ray length, metres.
        at: with `distance`: the pixel (u, v) of the picture as it was taken, None for the middle.
        corners_wh: with `chessboard`: inner corners along a row and along a column.
        square_m: with `chessboard`: side of a square, metres.
        family: with `tag`: one of `TAG_FAMILIES`.
        tag_m: with `tag`: side of the black square, metres.
    """

    method: str = 'distance'
    distance_m: float = 0.0
    at: tuple[float, float] | None = None
    corners_wh: tuple[int, int] = (9, 6)
    square_m: float = 0.025
    family: str = 'tag36h11'
    tag_m: float = 0.16

    def __post_init__(self) -> None:
        """Refuse what can be found in no picture."""
        if self.method not in METHODS:
            raise CalibrationError(f'method {self.method!r}, expected one of '
                                   f'{", ".join(METHODS)}')
        if self.method == 'distance':
            _check_distance(self.distance_m)
        elif self.method == 'chessboard':
            _check_board(self.corners_wh, self.square_m)
        else:
            _check_tag(self.tag_m, self.family)

    def look(self, rgb: NDArray[np.uint8], depth: NDArray[np.float32], camera: Camera,
             source: Camera) -> tuple[Reference, Sample]:
        """Find the reference in a picture, and compare depth with it.

        Args:
            rgb: (H, W, 3) rectified picture.
            depth: (H, W) of it, metres; no scale applied, made with `FILTERS`.
            camera: rectified camera of both.
            source: camera of the picture as it was taken.

        Raises:
            CalibrationError: it is not seen, or there is too little depth on it.
        """
        reference: Reference | None
        if self.method == 'distance':
            height, width = source.size_hw
            at = self.at or ((width - 1) / 2, (height - 1) / 2)
            if not (0 <= at[0] < width and 0 <= at[1] < height):
                raise CalibrationError(f'pixel ({at[0]:g}, {at[1]:g}) lies outside of the picture '
                                       f'of {width}x{height}')
            reference = known_distance(camera, self.distance_m, rectified_pixel(source, at))
        elif self.method == 'chessboard':
            reference = chessboard(rgb, camera, self.corners_wh, self.square_m)
        else:
            reference = tag(rgb, camera, self.tag_m, self.family)
        if reference is None:
            raise CalibrationError(f'no {self.method} was seen')
        return reference, compare(depth, reference)

"""Collects what a running node sees of a reference, until a scale can be told.  No ROS in here."""

from __future__ import annotations

from collections.abc import Callable
import math
import threading

from depth_node.calibration import (
    METHODS,
    CalibrationError,
    Result,
    Sample,
    Settings,
    compare,
    fit,
    uncorrected,
)
from depth_node.pipeline import DepthFrame
from depth_node.ros.parameters import Parameters

SENSOR = 'sensor'  # take over what scale.source points or ground finds
ALL_METHODS = (*METHODS, SENSOR)


class Calibrator:
    """One calibration of one camera, from the request to the answer.

    The worker gives frames by `take`; the executor's thread watches the time by `expire`.  The
    first of them that can tell calls `done` with the result or with the reason for none.
    """

    def __init__(self, parameters: Parameters, now: float,
                 done: Callable[[Result | str], None]) -> None:
        """Begin.

        Args:
            parameters: the groups calibration and scale are used.
            now: seconds on the caller's steady clock.
            done: called once, from either thread.

        Raises:
            CalibrationError: parameters that cannot work.
        """
        wanted = parameters.calibration
        self._frames = wanted.frames
        self._deadline = now + wanted.timeout_s
        self._timeout_s = wanted.timeout_s
        self._method = wanted.method
        self._done = done
        self._lock = threading.Lock()
        self._samples: list[Sample] = []
        self._seen = 0
        self._reason = 'no image was processed; is the camera running?'
        self._ended = False
        if wanted.method == SENSOR:
            if parameters.scale.source not in ('points', 'ground'):
                raise CalibrationError(
                    f'calibration.method sensor keeps what a sensor finds, but scale.source is '
                    f'{parameters.scale.source}: set it to points or ground first')
            return
        if wanted.method == 'distance' and wanted.distance_m <= 0:
            raise CalibrationError(
                'calibration.distance_m is not set: measure from the lens to what is in the '
                'middle of the picture, and set it in metres')
        self._settings = Settings(
            wanted.method, distance_m=wanted.distance_m,
            at=None if min(wanted.at) < 0 else (float(wanted.at[0]), float(wanted.at[1])),
            corners_wh=(wanted.board[0], wanted.board[1]), square_m=wanted.square_m,
            family=wanted.tag_family, tag_m=wanted.tag_m)

    def take(self, frame: DepthFrame) -> None:
        """Look at a frame (worker's thread)."""
        if self._ended:
            return
        self._seen += 1
        try:
            sample = self._sample(frame)
            if sample is not None:
                self._samples.append(sample)
        except CalibrationError as error:
            self._reason = str(error)
        if len(self._samples) >= self._frames:
            self._end(self._result())

    def expire(self, now: float) -> None:
        """Give up, or make do with what there is, once the time is over (executor's thread)."""
        if now < self._deadline or self._ended:
            return
        if len(self._samples) >= 3:
            self._end(self._result())
        else:
            self._end(f'{len(self._samples)} of {self._seen} images in {self._timeout_s:g} s '
                      f'could be used, expected at least 3: {self._reason}')

    def cancel(self, reason: str) -> None:
        """Give up now."""
        self._end(reason)

    def _end(self, outcome: Result | str) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._done(outcome)

    def _result(self) -> Result | str:
        try:
            return fit(tuple(self._samples))
        except CalibrationError as error:
            return str(error)

    def _sample(self, frame: DepthFrame) -> Sample | None:
        if self._method == SENSOR:
            scale = frame.scale
            if scale.source not in ('points', 'ground') or scale.state != 'ok':
                raise CalibrationError(f'the scale is {scale.state}: {scale.note}')
            if scale.space != 'depth' or scale.shift != 0.0:
                raise CalibrationError(
                    'the sensor fits a shift of the inverse depth, which changes from scene to '
                    'scene and cannot be kept; leave scale.source as it is')
            spread = scale.uncertainty if math.isfinite(scale.uncertainty) else 0.0
            return Sample(1.0, scale.scale, spread, max(1, scale.support))
        if frame.camera is None:
            raise CalibrationError('the intrinsics of the camera are not known')
        reference = self._settings.reference(frame.rgb, frame.camera)
        if reference is None:
            raise CalibrationError(f'no {self._method} was seen')
        return compare(uncorrected(frame.depth, frame.scale), reference)

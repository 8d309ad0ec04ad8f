"""Collects what a running node sees of a reference, until a scale can be told.  No ROS in here."""

from __future__ import annotations

from collections.abc import Callable
import threading

import cv2
from depth_node.backends import Backend
from depth_node.calibration import (
    FILTERS,
    CalibrationError,
    Result,
    Sample,
    Settings,
    average,
    check_model,
    fit,
)
from depth_node.camera import Camera
from depth_node.pipeline import DepthFrame, DepthPipeline
from depth_node.ros.parameters import Parameters
import numpy as np
from numpy.typing import NDArray

BUSY = 'a calibration is running already'
SENSOR = 'sensor'  # take over what scale.source points or ground finds
_ENOUGH = 3  # samples that will do when the time is over


class Calibrator:
    """One calibration of one camera, from the request to the answer.

    It runs the network a second time on each image, without the correction and the filters in
    force: these may hide the reference, and one picture's depth would lean on the last one's.

    The worker gives images by `take`; the executor's thread watches the time by `expire`.  The
    first of them that can tell calls `done` with the result or with the reason for none.
    """

    def __init__(self, parameters: Parameters, backend: Backend, now: float,
                 done: Callable[[Result | str], None]) -> None:
        """Begin.

        Args:
            parameters: the groups calibration, scale and input are used.
            backend: the open network; only `take` uses it.
            now: seconds on the caller's steady clock.
            done: called once, from either thread.

        Raises:
            CalibrationError: parameters or a network that cannot work.
        """
        wanted = parameters.calibration
        self._frames = wanted.frames
        self._deadline = now + wanted.timeout_s
        self._timeout_s = wanted.timeout_s
        self._done = done
        self._lock = threading.Lock()
        self._samples: list[Sample] = []
        self._factors: list[tuple[float, float]] = []  # a sensor's, with their uncertainties
        self._seen = 0
        self._reason = 'no image was processed; is the camera running?'
        self._ended = False
        self._settings: Settings | None = None
        check_model(backend.card)
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
        self._rectify = parameters.input.rectify
        self._pipeline = DepthPipeline(backend, filters=FILTERS, rectify=self._rectify)

    def take(self, frame: DepthFrame, rgb: NDArray[np.uint8], camera: Camera | None) -> None:
        """Look at an image (worker's thread).

        Args:
            frame: what the node made of it.
            rgb: the picture as it came.
            camera: its camera.
        """
        if self._ended:
            return
        self._seen += 1
        try:
            if self._settings is None:
                self._factors.append(self._sensed(frame))
            else:
                self._samples.append(self._looked(self._settings, rgb, camera))
        except CalibrationError as error:
            self._reason = str(error)
        except cv2.error as error:
            self._reason = f'OpenCV: {error}'
        if self._count >= self._frames:
            self._end(self._result())

    def expire(self, now: float) -> None:
        """Give up, or make do with what there is, once the time is over (executor's thread)."""
        if now < self._deadline or self._ended:
            return
        if self._count >= min(_ENOUGH, self._frames):
            self._end(self._result())
        else:
            self._end(f'{self._count} of {self._seen} images in {self._timeout_s:g} s '
                      f'could be used, expected at least {_ENOUGH}: {self._reason}')

    def cancel(self, reason: str) -> None:
        """Give up now."""
        self._end(reason)

    @property
    def _count(self) -> int:
        return len(self._samples) + len(self._factors)

    def _end(self, outcome: Result | str) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._done(outcome)

    def _result(self) -> Result | str:
        try:
            if self._settings is None:
                factors = tuple(self._factors)
                return average([item[0] for item in factors], [item[1] for item in factors])
            return fit(tuple(self._samples))
        except CalibrationError as error:
            return str(error)

    def _looked(self, settings: Settings, rgb: NDArray[np.uint8], camera: Camera | None
                ) -> Sample:
        if camera is None:
            raise CalibrationError('the intrinsics of the camera are not known')
        frame = self._pipeline.run(rgb, camera)
        source = camera if self._rectify == 'auto' else camera.rectified()
        assert frame.camera is not None
        return settings.look(frame.rgb, frame.depth, frame.camera, source)[1]

    @staticmethod
    def _sensed(frame: DepthFrame) -> tuple[float, float]:
        scale = frame.scale
        if scale.source not in ('points', 'ground') or scale.state != 'ok':
            raise CalibrationError(f'the scale is {scale.state}: {scale.note}')
        if scale.space != 'depth' or scale.shift != 0.0:
            raise CalibrationError(
                'the sensor fits a shift of the inverse depth, which changes from scene to '
                'scene and cannot be kept; set scale.fit to scale, or leave scale.source as it '
                'is')
        return scale.scale, scale.uncertainty

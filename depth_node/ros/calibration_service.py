"""The service `~/calibrate_scale` of one camera."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
import time
from typing import Any

from depth_node.backends import Backend
from depth_node.calibration import CalibrationError, Result
from depth_node.camera import Camera
from depth_node.pipeline import DepthFrame
from depth_node.ros import calibration_file
from depth_node.ros.calibration_file import CalibrationFileError
from depth_node.ros.calibrator import BUSY, Calibrator
from depth_node.ros.parameters import Parameters
import numpy as np
from numpy.typing import NDArray
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.task import Future
from std_srvs.srv import Trigger


class CalibrationService:
    """Answers when enough images were compared with the reference that the parameters name.

    A calibration puts its result in force by setting scale.source, scale.scale and scale.shift.
    While one runs, images are processed though nobody subscribes to depth.
    """

    def __init__(self, node: Node, camera: str, backend: Backend,
                 parameters: Callable[[], Parameters], active: Callable[[], bool]) -> None:
        """Offer the service.

        Args:
            node: its owner.
            camera: name of the camera, '' for the only one.
            backend: the open network.
            parameters: gives the parameters in force for this camera.
            active: tells whether images are taken.
        """
        self._node = node
        self._camera = camera
        self._backend = backend
        self._parameters = parameters
        self._active = active
        self._calibrator: Calibrator | None = None
        name = f'~/{camera}/calibrate_scale' if camera else '~/calibrate_scale'
        # a coroutine that waits keeps its callback group: in the node's own it would stop all else
        self._service = node.create_service(Trigger, name, self._on_request,
                                            callback_group=ReentrantCallbackGroup())

    @property
    def running(self) -> bool:
        """True while a calibration needs images."""
        return self._calibrator is not None

    def take(self, frame: DepthFrame, rgb: NDArray[np.uint8], camera: Camera | None) -> None:
        """Look at an image and what became of it, if a calibration runs (worker's thread).

        The network may run again: what the frame shares with its buffers is lost.
        """
        calibrator = self._calibrator
        if calibrator is not None:
            calibrator.take(frame, rgb, camera)

    def watch(self) -> None:
        """End a calibration whose time is over (executor's thread)."""
        calibrator = self._calibrator
        if calibrator is None:
            return
        if not self._active():
            calibrator.cancel('the node was deactivated')
        calibrator.expire(time.perf_counter())

    def close(self) -> None:
        """Withdraw the service; a running calibration is answered with a failure."""
        calibrator = self._calibrator
        if calibrator is not None:
            calibrator.cancel('the node was stopped')
        self._withdraw()

    def _withdraw(self) -> None:
        # an answer that is on its way needs its service, or rclpy ends the node with InvalidHandle
        executor = self._node.executor
        if self._calibrator is not None and executor is not None:
            executor.create_task(self._withdraw)
        else:
            self._node.destroy_service(self._service)

    async def _on_request(self, _: Trigger.Request, response: Trigger.Response
                          ) -> Trigger.Response:
        response.success, response.message = False, ''
        if not self._active():  # first: a calibration that ends with its node is no reason to wait
            response.message = 'the node is not active: ros2 lifecycle set <node> activate'
            return response
        if self._calibrator is not None:
            response.message = BUSY
            return response
        parameters = self._parameters()
        outcome: Future = Future(executor=self._node.executor)
        try:
            self._calibrator = Calibrator(parameters, self._backend, time.perf_counter(),
                                          outcome.set_result)
        except CalibrationError as error:
            response.message = str(error)
            return response
        self._node.get_logger().info(
            f'{self._says}calibration by {parameters.calibration.method} begins: '
            f'{parameters.calibration.frames} images')
        try:
            result = await outcome
        finally:
            self._calibrator = None
        if isinstance(result, Result):
            response.success, response.message = self._put_in_force(result, parameters)
        else:
            response.message = result
        text = f'{self._says}calibration: {response.message}'
        if response.success:  # rclpy wants one place in the code for each severity
            self._node.get_logger().info(text)
        else:
            self._node.get_logger().warning(text)
        return response

    @property
    def _says(self) -> str:
        return f'{self._camera}: ' if self._camera else ''

    def _put_in_force(self, result: Result, parameters: Parameters) -> tuple[bool, str]:
        prefix = f'{self._camera}.scale' if self._camera else 'scale'
        answer: Any = self._node.set_parameters_atomically([
            Parameter(f'{prefix}.{name}', value=value)
            for name, value in calibration_file.parameters(result).items()])
        if not answer.successful:
            return False, f'found {calibration_file.words(result)}, but: {answer.reason}'
        parts = [calibration_file.words(result), *result.notes]
        if parameters.calibration.file:
            path = Path(parameters.calibration.file)
            try:
                path = path.expanduser()
                calibration_file.save(path, result, model=self._backend.card.name,
                                      camera=self._camera,
                                      node=self._node.get_fully_qualified_name())
                parts.append(f'written to {path}')
            except (CalibrationFileError, OSError, RuntimeError) as error:
                return False, f'in force until the node ends: {parts[0]}; not written: {error}'
        else:
            parts.append('in force until the node ends; calibration.file keeps it')
        return True, '; '.join(parts)

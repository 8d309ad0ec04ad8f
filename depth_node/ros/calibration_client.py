"""Asks a running node to calibrate its scale; what `depth-node calibrate --live` does."""

from __future__ import annotations

from collections.abc import Mapping
import os
import time
from typing import Any

from depth_node.ros.calibrator import BUSY
from rcl_interfaces.srv import GetParameters, SetParametersAtomically
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

_DISCOVERY_S = 10.0
_SLACK_S = 10.0  # beyond the node's own time limit
_AGAIN_S = 2.0
_STEP_S = 0.1  # rclpy waits in C, where Ctrl-C is not heard


class CalibrationClientError(RuntimeError):
    """The node cannot be asked, or did not calibrate; the text says why."""


def ask(node_name: str, camera: str, parameters: Mapping[str, Any]) -> str:
    """Set parameters, call `~/calibrate_scale`, and return the node's answer.

    Args:
        node_name: full name of the node, /mono_depth say.
        camera: of a node that serves several, else empty.
        parameters: of the group `calibration`, set for that camera.

    Raises:
        CalibrationClientError: no such node, a refused parameter, or no calibration.
    """
    name = '/' + node_name.strip('/')
    service = f'{name}/{camera}/calibrate_scale' if camera else f'{name}/calibrate_scale'
    prefix = f'{camera}.' if camera else ''
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        node = Node(f'calibration_client_{os.getpid()}', context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        try:
            served = _call(node, executor, GetParameters, f'{name}/get_parameters',
                           GetParameters.Request(names=['cameras']))
            cameras = [item for value in served.values for item in value.string_array_value]
            if camera not in (cameras or ['']):
                known = ', '.join(filter(None, cameras)) or 'one without a name'
                raise CalibrationClientError(f'{name} has no camera {camera!r}; it has {known}'
                                             if camera else f'{name} has several cameras, choose '
                                             f'one (--camera): {known}')
            values = [Parameter(prefix + key, value=value).to_parameter_msg()
                      for key, value in parameters.items()]
            answer = _call(node, executor, SetParametersAtomically,
                           f'{name}/set_parameters_atomically',
                           SetParametersAtomically.Request(parameters=values))
            if not answer.result.successful:
                raise CalibrationClientError(f'{name} refuses: {answer.result.reason}')
            limits = _call(node, executor, GetParameters, f'{name}/get_parameters',
                           GetParameters.Request(names=list(dict.fromkeys(
                               (f'{prefix}calibration.timeout_s', 'calibration.timeout_s')))))
            # a camera's own may not be set: the shared one counts then
            seconds = next((item.double_value for item in limits.values if item.double_value),
                           _DISCOVERY_S)
            outcome = _call(node, executor, Trigger, service, Trigger.Request(),
                            seconds + _SLACK_S)
        finally:
            executor.shutdown()
            node.destroy_node()
    finally:
        context.try_shutdown()
    if not outcome.success:
        raise CalibrationClientError(f'{name}: {outcome.message}')
    return str(outcome.message)


def _call(node: Node, executor: SingleThreadedExecutor, kind: Any, name: str, request: Any,
          seconds: float = _DISCOVERY_S) -> Any:
    client = node.create_client(kind, name)
    try:
        if not client.wait_for_service(timeout_sec=_DISCOVERY_S):
            raise CalibrationClientError(
                f'no service {name} within {_DISCOVERY_S:g} s; is the node running and '
                'configured, in the same ROS_DOMAIN_ID? (ros2 node list)')
        futures = [client.call_async(request)]
        began = time.monotonic()
        while True:
            executor.spin_once(timeout_sec=_STEP_S)
            answers = [future.result() for future in futures if future.done()]
            answer = next((item for item in answers if not _is_busy(item)), None)
            if answer is not None or len(answers) == len(futures):
                return answer or answers[0]
            if not client.service_is_ready():
                raise CalibrationClientError(f'{name} went away before it answered: the node '
                                             'ended, or was cleaned up')
            waited = time.monotonic() - began
            if waited > seconds:
                raise CalibrationClientError(f'{name} did not answer within {seconds:g} s')
            if waited > _AGAIN_S and len(futures) == 1:
                # a server that is just being discovered can miss a request
                futures.append(client.call_async(request))
    finally:
        node.destroy_client(client)


def _is_busy(answer: Any) -> bool:
    """Return whether the answer is that of a second request, of which the first is in work."""
    return not getattr(answer, 'success', True) and answer.message == BUSY

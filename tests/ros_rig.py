"""What the tests over real DDS share: a tiny network, the node as a process, and its other end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import hashlib
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import yaml

NETWORK_HW = 48, 64
IMAGE_TOPIC, INFO_TOPIC = '/cam/image_raw', '/cam/camera_info'
FRAME = 'cam_optical_frame'
# fx != fy and a centre off the middle, so that a swapped axis shows
FX, FY, CX, CY = 60.0, 70.0, 30.5, 26.0
# parameters that the tests start from, where they are not the node's own defaults
DEFAULTS = {'model.name': 'tiny', 'backend.name': 'onnxruntime', 'backend.threads': 1,
            'diagnostics.period_s': 0.2, 'filter.flying_pixel_angle_deg': 0.0,
            'filter.flying_pixel_jump': 0.0, 'filter.temporal': 'off',
            'input.camera_info_wait_s': 0.0}


def red_to_depth(red: Any) -> Any:
    """Return the depth that the tiny network gives a pixel: 1 m + 1 cm per step of red."""
    return 1.0 + 0.01 * np.asarray(red, np.float32)


def write_tiny_model(folder: Path, name: str = 'tiny', *, work: int = 0,
                     confidence: bool = False, fragile: bool = False) -> Path:
    """Write an ONNX file and its card; return the card.

    Args:
        folder: where to.
        name: of the card.
        work: side of square matrices multiplied in vain, to make the network slow.
        confidence: whether it has a second output, green / 255.
        fragile: whether it fails at run time on a first pixel of red 200 and above.
    """
    from onnx import TensorProto, checker, helper, numpy_helper, save

    height, width = NETWORK_HW
    constants = [
        numpy_helper.from_array(np.array(values, kind), label) for label, values, kind in (
            ('zero', [0], np.int64), ('one', [1], np.int64), ('two', [2], np.int64),
            ('channels', [3], np.int64), ('slope', [0.01], np.float32),
            ('offset', [1.0], np.float32), ('full', [1 / 255], np.float32))]
    nodes = [
        helper.make_node('Slice', ['image', 'zero', 'one', 'channels'], ['red']),
        helper.make_node('Cast', ['red'], ['red_f'], to=TensorProto.FLOAT),
        helper.make_node('Transpose', ['red_f'], ['red_t'], perm=[0, 3, 1, 2]),
        helper.make_node('Mul', ['red_t', 'slope'], ['scaled']),
    ]
    outputs = [helper.make_tensor_value_info('depth', TensorProto.FLOAT, [1, 1, height, width])]
    last = 'scaled'
    if work:
        square = np.random.default_rng(0).normal(size=(work, work)).astype(np.float32)
        constants += [numpy_helper.from_array(square / work, 'square'),
                      numpy_helper.from_array(np.array([0.0], np.float32), 'nothing')]
        # depends on the image, so that no optimiser computes it beforehand
        nodes += [helper.make_node('ReduceMean', ['scaled'], ['mean'], keepdims=0),
                  helper.make_node('Mul', ['square', 'mean'], ['m0'])]
        for index in range(4):
            nodes.append(helper.make_node('MatMul', [f'm{index}', 'square'], [f'm{index + 1}']))
        nodes += [helper.make_node('ReduceMean', ['m4'], ['waste'], keepdims=0),
                  helper.make_node('Mul', ['waste', 'nothing'], ['no']),
                  helper.make_node('Add', ['scaled', 'no'], ['late'])]
        last = 'late'
    if fragile:
        constants += [numpy_helper.from_array(np.zeros(200, np.float32), 'table'),
                      numpy_helper.from_array(np.array([0, 0, 0, 0]), 'corner'),
                      numpy_helper.from_array(np.array([1, 1, 1, 1]), 'corner_end')]
        nodes += [helper.make_node('Slice', ['red_t', 'corner', 'corner_end'], ['first']),
                  helper.make_node('Cast', ['first'], ['index'], to=TensorProto.INT64),
                  helper.make_node('Gather', ['table', 'index'], ['looked_up']),
                  helper.make_node('Add', [last, 'looked_up'], ['checked'])]
        last = 'checked'
    nodes.append(helper.make_node('Add', [last, 'offset'], ['depth']))
    card: dict[str, Any] = {
        'card_version': 1, 'name': name, 'licence': 'Apache-2.0',
        'input': {'name': 'image', 'layout': 'uint8_nhwc', 'colour': 'rgb', 'resize': 'stretch',
                  'size_hw': [height, width]},
        'output': {'name': 'depth', 'kind': 'depth', 'unit': 'm', 'range_m': [0.5, 3.0]},
    }
    if confidence:
        nodes += [helper.make_node('Slice', ['image', 'one', 'two', 'channels'], ['green']),
                  helper.make_node('Cast', ['green'], ['green_f'], to=TensorProto.FLOAT),
                  helper.make_node('Transpose', ['green_f'], ['green_t'], perm=[0, 3, 1, 2]),
                  helper.make_node('Mul', ['green_t', 'full'], ['confidence'])]
        outputs.append(helper.make_tensor_value_info(
            'confidence', TensorProto.FLOAT, [1, 1, height, width]))
        card['output']['confidence'] = 'confidence'
    graph = helper.make_graph(
        nodes, name,
        [helper.make_tensor_value_info('image', TensorProto.UINT8, [1, height, width, 3])],
        outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    checker.check_model(model)
    path = folder / f'{name}.onnx'
    save(model, path)
    card['files'] = {'fp32': {'file': path.name,
                              'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}}
    path.with_suffix('.yaml').write_text(yaml.safe_dump(card))
    return path.with_suffix('.yaml')


class Process:
    """A program under test, its output in a file."""

    def __init__(self, command: list[str], log: Path,
                 env: Mapping[str, str] | None = None) -> None:
        self.log_file = log
        with open(log, 'wb') as out:
            self.popen = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, 'PYTHONUNBUFFERED': '1', 'RCUTILS_LOGGING_BUFFERED_STREAM': '0',
                     **(env or {})})

    @property
    def log(self) -> str:
        """Everything that it wrote so far."""
        return self.log_file.read_text(errors='replace')

    def wait_for_log(self, text: str, timeout_s: float = 30.0) -> None:
        """Wait until `text` was written."""
        end = time.monotonic() + timeout_s
        while text not in self.log:
            if self.popen.poll() is not None:
                raise AssertionError(f'ended with {self.popen.returncode}:\n{self.log}')
            if time.monotonic() > end:
                raise AssertionError(f'{text!r} is not in the log:\n{self.log}')
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGINT, timeout_s: float = 20.0) -> int:
        """Send a signal and return the exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise AssertionError(f'did not end on signal {number}:\n{self.log}') from None


def node_command(parameters: Mapping[str, Any], *extra: str) -> list[str]:
    """Return the command that starts mono_depth on the test's topics."""
    command = [sys.executable, '-m', 'depth_node.ros.node', '--ros-args',
               '-r', f'image:={IMAGE_TOPIC}', '-r', f'camera_info:={INFO_TOPIC}']
    for name, value in parameters.items():
        text = yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
        command += ['-p', f'{name}:={text}']
    return [*command, *extra]


class Peer:
    """The other end: a camera, subscribers and service clients in the test's process."""

    def __init__(self, node_name: str = '/mono_depth') -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('test_peer', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.under_test = node_name
        self._clock = 1000.0
        self._clients: dict[str, Any] = {}
        self._image_publishers: dict[tuple[str, Any], Any] = {}
        self._subscriptions: list[Any] = []

    def close(self) -> None:
        """Leave the domain."""
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    # --- waiting

    def spin(self, seconds: float) -> None:
        """Handle callbacks for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=min(left, 0.05))

    def wait(self, done: Callable[[], Any], timeout_s: float = 15.0, what: str = '') -> Any:
        """Handle callbacks until `done` is true, and return what it returned."""
        end = time.monotonic() + timeout_s
        while not (result := done()):
            if time.monotonic() > end:
                raise AssertionError(f'timed out: {what or done}')
            self.executor.spin_once(timeout_sec=0.02)
        return result

    # --- services

    def call(self, kind: Any, name: str, request: Any, timeout_s: float = 15.0) -> Any:
        """Call a service of the node under test."""
        full = f'{self.under_test}/{name}'
        if full not in self._clients:
            self._clients[full] = self.node.create_client(kind, full)
        client = self._clients[full]
        self.wait(client.service_is_ready, timeout_s, f'service {full}')
        future = client.call_async(request)
        if name.startswith(('get_', 'describe_')):
            # a server that is just being discovered can miss a request: ask again, once
            end = time.monotonic() + 3.0
            while not future.done() and time.monotonic() < end:
                self.executor.spin_once(timeout_sec=0.02)
            if not future.done():
                future = client.call_async(request)
        self.wait(future.done, timeout_s, f'answer of {full}')
        return future.result()

    def transition(self, label: str) -> bool:
        """Ask for a lifecycle transition."""
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request()
        request.transition.label = label.rpartition('_')[2]
        ids = {'configure': 1, 'cleanup': 2, 'activate': 3, 'deactivate': 4,
               'unconfigured_shutdown': 5, 'inactive_shutdown': 6, 'active_shutdown': 7}
        request.transition.id = ids[label]
        return bool(self.call(ChangeState, 'change_state', request, 60.0).success)

    def state(self) -> str:
        """Return the lifecycle state."""
        from lifecycle_msgs.srv import GetState

        return str(self.call(GetState, 'get_state', GetState.Request()).current_state.label)

    def set(self, together: bool = False, **parameters: Any) -> str:
        """Set parameters (`__` for a dot); return '' or the reasons of refusal."""
        from rcl_interfaces.srv import SetParameters, SetParametersAtomically
        from rclpy.parameter import Parameter

        values = [Parameter(name.replace('__', '.'), value=value).to_parameter_msg()
                  for name, value in parameters.items()]
        if together:
            reply = self.call(SetParametersAtomically, 'set_parameters_atomically',
                              SetParametersAtomically.Request(parameters=values))
            return '' if reply.result.successful else reply.result.reason
        reply = self.call(SetParameters, 'set_parameters',
                          SetParameters.Request(parameters=values))
        return '; '.join(item.reason for item in reply.results if not item.successful)

    def get(self, name: str) -> Any:
        """Return a parameter's value."""
        from rcl_interfaces.srv import GetParameters
        from rclpy.parameter import parameter_value_to_python

        reply = self.call(GetParameters, 'get_parameters', GetParameters.Request(names=[name]))
        return parameter_value_to_python(reply.values[0])

    # --- the camera

    def next_stamp(self) -> float:
        """Return a new time, 1/32 s after the last (exact in binary)."""
        self._clock += 0.03125
        return self._clock

    def image(self, rgb: Any, *, stamp: float | None = None, frame: str = FRAME) -> Any:
        """Return an rgb8 Image."""
        from sensor_msgs.msg import Image

        rgb = np.ascontiguousarray(rgb, np.uint8)
        message = Image(height=rgb.shape[0], width=rgb.shape[1], encoding='rgb8',
                        step=3 * rgb.shape[1])
        message.data.frombytes(rgb.reshape(-1))
        return self.stamped(message, stamp, frame)

    def stamped(self, message: Any, stamp: float | None = None, frame: str = FRAME) -> Any:
        """Set the header."""
        seconds = self.next_stamp() if stamp is None else stamp
        message.header.stamp.sec = int(seconds)
        message.header.stamp.nanosec = int(1e9 * (seconds - int(seconds)))
        message.header.frame_id = frame
        return message

    def info(self, size_hw: tuple[int, int] = NETWORK_HW, *, k: Any = None, d: Any = (),
             model: str = 'plumb_bob', p: Any = None, stamp: float | None = None) -> Any:
        """Return a CameraInfo."""
        from sensor_msgs.msg import CameraInfo

        message = CameraInfo(height=size_hw[0], width=size_hw[1], distortion_model=model)
        message.k = [FX, 0.0, CX, 0.0, FY, CY, 0.0, 0.0, 1.0] if k is None else list(k)
        message.d = [float(value) for value in d]
        message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        message.p = ([FX, 0.0, CX, 0.0, 0.0, FY, CY, 0.0, 0.0, 0.0, 1.0, 0.0] if p is None
                     else list(p))
        return self.stamped(message, stamp)

    def publisher(self, topic: str, kind: Any, *, reliable: bool = True) -> Any:
        """Return a publisher that has found the node's subscription."""
        from rclpy.qos import QoSProfile, QoSReliabilityPolicy

        key = topic, reliable
        if key not in self._image_publishers:
            profile = QoSProfile(depth=5, reliability=(
                QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT))
            self._image_publishers[key] = self.node.create_publisher(kind, topic, profile)
        made = self._image_publishers[key]
        self.wait(made.get_subscription_count, what=f'a subscriber on {topic}')
        return made

    def advertise(self, topic: str, kind: Any, profile: Any) -> Any:
        """Return a publisher that need not be found by anybody."""
        made = self.node.create_publisher(kind, topic, profile)
        self._image_publishers[topic, f'advertised {len(self._image_publishers)}'] = made
        return made

    def withdraw(self, made: Any) -> None:
        """Destroy a publisher before the test ends."""
        key = next(key for key, value in self._image_publishers.items() if value is made)
        self.node.destroy_publisher(self._image_publishers.pop(key))

    def camera(self, info: Any = None, *, reliable: bool = True, image_topic: str = IMAGE_TOPIC,
               info_topic: str = INFO_TOPIC) -> Callable[[Any], None]:
        """Return a function that publishes an Image, with a CameraInfo before it."""
        from sensor_msgs.msg import CameraInfo, Image

        images = self.publisher(image_topic, Image, reliable=reliable)
        infos = None if info is None else self.publisher(info_topic, CameraInfo, reliable=reliable)

        def send(message: Any) -> None:
            if infos is not None:
                info.header = message.header
                infos.publish(info)
            images.publish(message)
        return send

    # --- subscribers

    def collect(self, topic: str, kind: Any, *, depth: int = 50, reliable: bool = True,
                wait: bool = True) -> list[Any]:
        """Subscribe to a topic of the node (`~/`), and return the list that fills."""
        from rclpy.qos import QoSProfile, QoSReliabilityPolicy

        full = topic.replace('~', self.under_test, 1)
        received: list[Any] = []
        profile = QoSProfile(depth=depth, reliability=(
            QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT))
        self._subscriptions.append(
            self.node.create_subscription(kind, full, received.append, profile))
        if wait:
            self.wait(lambda: self.node.count_publishers(full), what=f'a publisher on {full}')
        return received

    def forget(self) -> None:
        """Drop all publishers and subscriptions, as the next test wants it."""
        for subscription in self._subscriptions:
            self.node.destroy_subscription(subscription)
        self._subscriptions.clear()
        for publisher in self._image_publishers.values():
            self.node.destroy_publisher(publisher)
        self._image_publishers.clear()

    def send_until(self, send: Callable[[Any], None], make: Callable[[], Any],
                   done: Callable[[], Any], timeout_s: float = 15.0, what: str = '') -> Any:
        """Send new messages every 30 ms until `done`, and return what it returned."""
        end = time.monotonic() + timeout_s
        while not (result := done()):
            if time.monotonic() > end:
                raise AssertionError(f'timed out: {what or done}')
            send(make())
            self.spin(0.03)
        return result

    def diagnostics(self, check: str, wanted: Callable[[Any], bool] = lambda _: True,
                    timeout_s: float = 15.0) -> Any:
        """Return the first new status of one check that is as wanted."""
        from diagnostic_msgs.msg import DiagnosticArray

        received = self.collect('/diagnostics', DiagnosticArray)
        mine = self._subscriptions.pop()
        last: list[Any] = []

        def found() -> Any:
            while received:
                for status in received.pop(0).status:
                    if status.name == f'{self.under_test[1:]}: {check}':
                        last[:] = [status]
                        if wanted(status):
                            return status
            return None
        try:
            return self.wait(found, timeout_s, f'diagnostics {check}')
        except AssertionError as error:
            raise AssertionError(f'{error}; the last one was {last}') from None
        finally:
            self.node.destroy_subscription(mine)


def values_of(status: Any) -> dict[str, str]:
    """Return a DiagnosticStatus' values."""
    return {item.key: item.value for item in status.values}


def stamp_of(message: Any) -> float:
    """Return a message's time in seconds."""
    return float(message.header.stamp.sec) + 1e-9 * float(message.header.stamp.nanosec)


def depth_of(message: Any) -> Any:
    """Return a depth Image's array, read without the package under test."""
    kind = {'32FC1': np.float32, '16UC1': np.uint16}[message.encoding]
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    return rows[:, :message.width * np.dtype(kind).itemsize].copy().view(kind)


def points_of(message: Any) -> Any:
    """Return a cloud as a structured array (height, width), read by its own field table."""
    kinds = {7: np.float32}
    dtype = np.dtype({'names': [field.name for field in message.fields],
                      'formats': [kinds[field.datatype] for field in message.fields],
                      'offsets': [field.offset for field in message.fields],
                      'itemsize': message.point_step})
    return np.frombuffer(message.data, dtype).reshape(message.height, message.width)

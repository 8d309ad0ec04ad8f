"""`mono_depth`: a lifecycle node from camera topics to depth images and points.

Threads: the executor's only thread receives and leaves each camera's newest image in a mailbox;
one worker thread decodes, runs the pipeline and publishes, camera by camera in turn.  A frame that
cannot be used is counted under a name, never fatal and never silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import ctypes
from functools import partial
import os
from pathlib import Path
import sys
import time
import traceback
from typing import Any

from depth_node.backends import Backend, BackendError, open_backend
from depth_node.camera import Camera, CameraError
from depth_node.model_card import CardError, ModelCard
from depth_node.ros import diagnostics, messages, settings
from depth_node.ros.channel import (
    CLOCK_JUMP_S,
    LOG_EVERY_S,
    Channel,
    ConfigureError,
    Job,
    Surroundings,
    check_range,
)
from depth_node.ros.interrupts import Interrupts
from depth_node.ros.parameter_server import ParameterServer
from depth_node.ros.parameters import NODE_NAME, ParameterError, Parameters
from depth_node.ros.transforms import Transforms
from depth_node.ros.worker import NewestWorker
from diagnostic_msgs.msg import DiagnosticArray
import rclpy
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import Trigger

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
_IDLE_TIMEOUT_S = 10.0


class MonoDepthNode(LifecycleNode):
    """The node; see docs/topics.md for what it subscribes and publishes."""

    def __init__(self, **kwargs: Any) -> None:
        """Declare parameters and start diagnostics; everything else waits for configure."""
        super().__init__(NODE_NAME, **kwargs)
        self._state = 'unconfigured'
        self._failure = ''
        self._backend: Backend | None = None
        self._channels: list[Channel] = []
        self._worker: NewestWorker[Job] | None = None
        self._transforms = Transforms(self)
        self._closing = False

        self._parameter_server = ParameterServer(
            self, configured=lambda: self._state in ('inactive', 'active'),
            check=self._check_parameters)
        for remark in self._parameter_server.warnings:
            self.get_logger().warning(remark)
        for problem in self._parameter_server.problems.values():
            self.get_logger().error(f'parameter {problem}; the node stays unconfigured until it '
                                    'is set to a usable value')
        if messages.DepthStatus is None:
            self.get_logger().info(
                '~/status is not published: the message depth_node/msg/DepthStatus is not built '
                '(build the package with colcon, or pip install it where the ROS message '
                'generators are)')
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # timers on a steady clock: with use_sim_time and a paused bag the node still reports
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(self.parameters.diagnostics.period_s, self._report, clock=steady)
        self.create_timer(0.5, self._watch, clock=steady)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self._service_change_state.callback = self._answering(self._service_change_state.callback)
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(seconds=-CLOCK_JUMP_S),
                          on_clock_change=True),
            post_callback=self._on_clock_jump)

    @property
    def parameters(self) -> Parameters:
        """The parameters in force, but for what a camera has for itself."""
        return self._parameter_server.current

    # --- lifecycle

    def _answering(self, change_state: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Let a transition that the state does not have be refused, not end the process.

        rclpy before Kilted raises in the service's callback, and with that leaves `spin`.
        """
        def answer(request: Any, response: Any) -> Any:
            try:
                return change_state(request, response)
            except rclpy_implementation.RCLError as error:
                self.get_logger().error(f'transition {request.transition.id} refused in state '
                                        f'{self._state}: {error}')
                response.success = False
                return response

        return answer

    def autostart(self) -> None:
        """Configure and activate; on failure the node stays where it is, and says why."""
        if self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and create topics."""
        del state
        try:
            self._configure()
        except Exception as error:  # the transition must fail with a reason, whatever it is
            expected = isinstance(error, (
                BackendError, CardError, CameraError, ConfigureError, ParameterError))
            self._release()
            self._failure = str(error) if expected else f'{type(error).__name__}: {error}'
            name = self.get_fully_qualified_name()
            detail = '' if expected else '\n' + traceback.format_exc()
            self.get_logger().error(
                f'not configured: {self._failure}{detail}\nRepair it (ros2 param set {name} ...), '
                f'then: ros2 lifecycle set {name} configure && ros2 lifecycle set {name} activate')
            self._report()
            return FAILURE
        self._failure = ''
        self._state = 'inactive'
        return SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to process images."""
        del state
        for channel in self._channels:
            channel.activate()
        self._state = 'active'
        topics = ', '.join(channel.image_topic for channel in self._channels)
        self.get_logger().info(f'active: waiting for images on {topics}')
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop processing; nothing is published after this returns."""
        del state
        for channel in self._channels:
            channel.active = False
        if not self._drain():
            for channel in self._channels:
                channel.active = True
            self.get_logger().error(f'the frame in work did not finish within {_IDLE_TIMEOUT_S:g} '
                                    's; the node stays active')
            return FAILURE
        self._state = 'inactive'
        return SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the model and the topics."""
        del state
        self._release()
        self._state = 'unconfigured'
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything; the node is of no more use."""
        del state
        self._release()
        self._state = 'finalized'
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to unconfigured after an unexpected error in a transition."""
        del state
        self._release()
        self._state = 'unconfigured'
        return SUCCESS

    def close(self) -> None:
        """Stop the worker and release the model, before `destroy_node`."""
        self._closing = True
        self._release()

    def _configure(self) -> None:
        started = time.perf_counter()
        if self._parameter_server.problems:
            raise ConfigureError('; '.join(self._parameter_server.problems.values()))
        self._parameter_server.check()
        wanted = self.parameters
        log = self.get_logger()
        own = {camera: self._parameter_server.of(camera) for camera in wanted.cameras}
        file_cameras: dict[str, Camera] = {}
        for camera, parameters in own.items():
            if parameters.input.camera_info_url:
                with _naming(camera):
                    file_cameras[camera] = Camera.from_yaml(parameters.input.camera_info_url)
        card = ModelCard.load(wanted.model.name)
        for camera, parameters in own.items():
            with _naming(camera):
                _check_for(card, parameters)
        backend = open_backend(
            card, wanted.backend.name, wanted.backend.precision,
            cache_dir=_cache_dir(wanted.backend.cache_dir, log.warning),
            threads=wanted.backend.threads or None, log=log.info)
        self._backend = backend
        worker: NewestWorker[Job] = NewestWorker(
            lambda job: job.channel.process(job), 'depth', slots=len(own))
        self._worker = worker
        for slot, camera in enumerate(own):
            around = Surroundings(
                parameters=partial(self._parameter_server.of, camera),
                put=partial(worker.put, slot=slot), topics=self._topics,
                transforms=self._transforms,
                ending=lambda: self._closing or not self.context.ok())
            with _naming(camera):
                self._channels.append(
                    Channel(self, camera, backend, around, file_camera=file_cameras.get(camera)))
        log.info(f'model {card.name} ({card.licence}) by {backend.name} {backend.precision} on '
                 f'{backend.device}, loaded in {time.perf_counter() - started:.2f} s')

    def _topics(self) -> set[str]:
        """Return the full names of the topics of all cameras."""
        return {topic for channel in self._channels for topic in channel.topics}

    def _release(self) -> None:
        for channel in self._channels:
            channel.active = False
        if self._worker is not None:
            self._drain()
            if not self._worker.close(_IDLE_TIMEOUT_S):
                self.get_logger().error('the worker thread did not end; it is left behind')
            self._worker = None
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        self._transforms.destroy()
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def _drain(self) -> bool:
        """Take the waiting jobs from the worker; return whether it became idle in time."""
        if self._worker is None:
            return True
        waiting, idle = self._worker.drain(_IDLE_TIMEOUT_S)
        for job in waiting:
            job.channel.dropped()
        return idle

    # --- parameters

    def _check_parameters(self, wanted: Parameters) -> None:
        """Refuse what the core refuses, with its reason (ValueError)."""
        settings.scale(wanted)
        settings.filters(wanted)
        settings.cloud(wanted)
        settings.scan(wanted)
        if self._backend is not None:
            _check_for(self._backend.card, wanted)

    # --- services and clock

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._reset()
        response.success = True
        response.message = 'state from earlier frames is dropped before the next frame'
        return response

    def _on_clock_jump(self, _: Any) -> None:
        self._reset()

    def _reset(self) -> None:
        for channel in self._channels:
            channel.reset()

    # --- reporting (executor's thread)

    def _watch(self) -> None:
        for channel in self._channels:
            self._guarded(channel.watch_sources)
            self._guarded(channel.watch_input)

    def _report(self) -> None:
        self._guarded(self._publish_diagnostics)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run reporting code whose failure must not end the node."""
        try:
            work()
        except Exception:
            if not self._closing and self.context.ok():
                self.get_logger().error(f'reporting failed:\n{traceback.format_exc()}',
                                        throttle_duration_sec=LOG_EVERY_S)

    def _publish_diagnostics(self) -> None:
        """Publish /diagnostics."""
        if self._closing or not self.context.ok():
            return
        state = self._node_state()
        backend = self._backend
        self._diagnostics.publish(diagnostics.to_message(
            diagnostics.checks(state), self.get_fully_qualified_name()[1:],
            '' if backend is None else backend.device, self.get_clock().now().to_msg()))

    def _node_state(self) -> diagnostics.NodeState:
        backend = self._backend
        state = diagnostics.NodeState(
            lifecycle=self._state, failure=self._failure,
            parameter_problems=tuple(self._parameter_server.problems.values()),
            warnings=tuple(self._parameter_server.warnings),
            use_sim_time=bool(self.get_parameter('use_sim_time').value),
            cameras=tuple(channel.facts() for channel in self._channels))
        if backend is not None:
            check = backend.card.check
            state.model = {
                'name': backend.card.name, 'card': str(backend.card.path),
                'backend': backend.name, 'version': backend.version,
                'precision': backend.precision, 'device': backend.device,
                'threads': str(backend.threads),
                'self_check': 'passed: reference statistics reproduced' if check is not None
                else 'passed: shapes and finite values only, the card has no statistics'}
            state.refusals = tuple((item.backend, item.reason) for item in backend.refusals)
        return state


@contextmanager
def _naming(camera: str) -> Iterator[None]:
    """Name the camera in what goes wrong inside."""
    try:
        yield
    except (CameraError, ConfigureError) as error:
        if not camera:
            raise
        raise ConfigureError(f'camera {camera}: {error}') from error


def _cache_dir(name: str, warn: Any) -> Path | None:
    """Return the folder of compiled models, made if need be; None where it cannot be written."""
    home = os.environ.get('XDG_CACHE_HOME') or os.path.join('~', '.cache')
    folder = Path(name).expanduser() if name else Path(home).expanduser() / 'depth_node'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warn(f'backend.cache_dir {folder}: {error.strerror}; compiled models are not kept')
        return None
    if not os.access(folder, os.W_OK):
        warn(f'backend.cache_dir {folder}: not writable; compiled models are not kept')
        return None
    return folder


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks of megabytes for the next frame.

    By default it may give them back after every message, and every new one then costs a page fault
    per 4 kB: measured 2 to 4 ms a frame of 640x480 with points, depending on luck.
    """
    mmap_threshold, trim_threshold = -3, -1  # malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(mmap_threshold, 32 << 20)
    mallopt(trim_threshold, 64 << 20)


def _check_for(card: ModelCard, wanted: Parameters) -> None:
    """Refuse what does not fit the network.

    Raises:
        ConfigureError: with the reason.
    """
    check_range(wanted, card)
    try:
        settings.points(wanted, card)
        settings.ground(wanted, card)
    except ValueError as error:
        raise ConfigureError(str(error)) from error


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; return the exit code."""
    interrupts = Interrupts()
    _keep_freed_memory()
    node = None
    try:
        try:
            rclpy.init(args=args)
            node = MonoDepthNode()
        except Exception as error:
            if isinstance(error, ExternalShutdownException):
                raise
            print(f'{NODE_NAME} cannot start: {type(error).__name__}: {error}\n'
                  'Look at the ROS arguments and the parameters file named there; '
                  'config/mono_depth.yaml is a correct one.', file=sys.stderr)
            return 2
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        if node.parameters.autostart:
            node.autostart()
        interrupts.starting = False
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        if rclpy.ok():
            raise
        # rclpy raises RCLError where a signal ends the context while a wait is being prepared
    finally:
        interrupts.ignore()
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
        interrupts.ignore()  # the shutdown gives signals back to whoever had them before rclpy
    return 0


if __name__ == '__main__':
    sys.exit(main())

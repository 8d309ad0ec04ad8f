"""`mono_depth`: a lifecycle node from a camera topic to depth images and points.

Threads: the executor's only thread receives and leaves the newest image in a mailbox; one worker
thread decodes, runs the pipeline and publishes.  A frame that cannot be used is counted under a
name, never fatal and never silent.
"""

from __future__ import annotations

from collections.abc import Callable
import ctypes
from dataclasses import dataclass, replace
import math
import os
from pathlib import Path
import sys
import threading
import time
import traceback
from typing import Any

from depth_node.backends import Backend, BackendError, open_backend
from depth_node.camera import Camera, CameraError
from depth_node.images import ImageError
from depth_node.model_card import CardError, ModelCard
from depth_node.pipeline import DepthFrame, DepthPipeline
from depth_node.ros import diagnostics, messages, qos, settings
from depth_node.ros.camera_source import CameraSource, Resolved
from depth_node.ros.interrupts import Interrupts
from depth_node.ros.outputs import DEPTH, POINTS, STATUS, Outputs, needs_camera
from depth_node.ros.parameter_server import ParameterServer
from depth_node.ros.parameters import NODE_NAME, Parameters
from depth_node.ros.statistics import Statistics
from depth_node.ros.worker import NewestWorker
from diagnostic_msgs.msg import DiagnosticArray
import rclpy
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
# A stamp this much older than the one before is a bag that starts again, not jitter.
CLOCK_JUMP_S = 1.0
LOG_EVERY_S = 5.0
_SEQUENCE_UNKNOWN = 2**64 - 1  # RMW_MESSAGE_INFO_SEQUENCE_NUMBER_UNSUPPORTED
_IDLE_TIMEOUT_S = 10.0


@dataclass
class Job:
    """An image on its way to the worker."""

    message: Any
    entered: float  # time.perf_counter at callback entry
    age_ms: float  # callback entry minus stamp, NaN where the clock does not run
    processed: bool = False  # counted as processed; what fails now is no skip any more


@dataclass
class Seen:
    """What the worker saw last, for diagnostics; replaced as a whole."""

    camera: Resolved | None = None
    frame: DepthFrame | None = None
    size: str = ''
    encoding: str = ''
    frame_id: str = ''
    last_skip: str = ''


class MonoDepthNode(LifecycleNode):
    """The node; see docs/topics.md for what it subscribes and publishes."""

    def __init__(self, **kwargs: Any) -> None:
        """Declare parameters and start diagnostics; everything else waits for configure."""
        super().__init__(NODE_NAME, **kwargs)
        self._state = 'unconfigured'
        self._failure = ''
        self._active = False
        self._activated_at = 0.0
        self._statistics = Statistics()
        self._seen = Seen()
        self._backend: Backend | None = None
        self._pipeline: DepthPipeline | None = None
        self._outputs: Outputs | None = None
        self._camera_source = CameraSource()
        self._worker: NewestWorker[Job] | None = None
        self._subscriptions_here: list[Subscription] = []
        self._input_qos: dict[str, QoSProfile] = {}
        self._image_topic = self._camera_info_topic = ''
        self._compressed = False
        self._reset_asked = threading.Event()
        self._last_stamp: float | None = None
        self._last_sequence: int | None = None
        self._image_publishers = 0
        self._advice: tuple[str, ...] = ()
        self._advice_logged: tuple[str, ...] = ()
        self._advice_again_at = 0.0
        self._report_before = self._statistics.counters()
        self._closing = False
        self._named_at: dict[str, float] = {}  # reason of a skip -> when the log named it last
        self._card: ModelCard | None = None

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
        self._rmw = rclpy.utilities.get_rmw_implementation_identifier()
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # timers on a steady clock: with use_sim_time and a paused bag the node still reports
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(self.parameters.diagnostics.period_s, self._report, clock=steady)
        self.create_timer(0.5, self._watch, clock=steady)
        self.create_service(Trigger, '~/reset', self._on_reset)
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(seconds=-CLOCK_JUMP_S),
                          on_clock_change=True),
            post_callback=self._on_clock_jump)

    @property
    def parameters(self) -> Parameters:
        """The parameters in force."""
        return self._parameter_server.current

    # --- lifecycle

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
            expected = isinstance(error, (BackendError, CardError, CameraError, ConfigureError))
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
        self._statistics.reset()
        self._report_before = self._statistics.counters()
        self._seen = Seen()
        self._last_stamp = self._last_sequence = None
        self._advice = self._advice_logged = ()
        self._activated_at = time.perf_counter()
        self._reset_asked.set()
        self._active = True
        self._state = 'active'
        self.get_logger().info(f'active: waiting for images on {self._image_topic}')
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop processing; nothing is published after this returns."""
        del state
        self._active = False
        if not self._drain():
            self._active = True
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
        wanted = self.parameters
        log = self.get_logger()
        camera = None
        if wanted.input.camera_info_url:
            camera = Camera.from_yaml(wanted.input.camera_info_url)
        card = ModelCard.load(wanted.model.name)
        _check_range(wanted, card)
        backend = open_backend(
            card, wanted.backend.name, wanted.backend.precision,
            cache_dir=_cache_dir(wanted.backend.cache_dir, log.warning),
            threads=wanted.backend.threads or None, log=log.info)
        self._backend, self._card = backend, card
        self._pipeline = DepthPipeline(
            backend, scale=settings.scale(wanted), filters=settings.filters(wanted),
            rectify=wanted.input.rectify)
        self._create_topics(camera, card)
        self._worker = NewestWorker(self._process, 'depth')
        log.info(f'model {card.name} ({card.licence}) by {backend.name} {backend.precision} on '
                 f'{backend.device}, loaded in {time.perf_counter() - started:.2f} s')

    def _create_topics(self, file_camera: Camera | None, card: ModelCard) -> None:
        base = self.resolve_topic_name('image')
        self._compressed = (base.endswith('/compressed')
                            or self.parameters.input.transport == 'compressed')
        topic = base
        if self._compressed and not base.endswith('/compressed'):
            topic = f'{base}/compressed'
        leaf = base.removesuffix('/compressed').rpartition('/')[2]
        self._image_topic = topic
        self._camera_info_topic = self.resolve_topic_name('camera_info')
        self._camera_source = CameraSource(
            file_camera, rectified_topic=leaf.startswith('image_rect'),
            topic=self._camera_info_topic)
        try:
            self._outputs = Outputs(self, confidence=card.output.confidence is not None,
                                    on_mismatch=self._on_output_mismatch)
            # a callback with two arguments receives the sequence numbers, where rclpy can
            with_info = hasattr(Subscription, 'CallbackType')
            on_image = self._on_image if with_info else self._on_image_alone
            self._subscribe(CompressedImage if self._compressed else Image, topic, on_image)
            self._subscribe(CameraInfo, self._camera_info_topic, self._on_camera_info)
        except Exception as error:  # rclpy raises RuntimeError for a QoS word that it cannot read
            raise ConfigureError(
                f'topics cannot be created: {type(error).__name__}: {error}; look at the '
                'qos_overrides parameters (read-only: restart the node after a change) and at '
                'the remapped names') from error

    def _subscribe(self, kind: Any, topic: str, callback: Any) -> None:
        profile = qos.input_qos()
        events = qos.SubscriptionEventCallbacks(
            incompatible_qos=lambda event: self._on_input_mismatch(topic, event))
        self._subscriptions_here.append(self.create_subscription(
            kind, topic, callback, profile, event_callbacks=events,
            qos_overriding_options=qos.overrides()))
        self._input_qos[topic] = profile

    def _release(self) -> None:
        self._active = False
        if self._worker is not None:
            self._drain()
            if not self._worker.close(_IDLE_TIMEOUT_S):
                self.get_logger().error('the worker thread did not end; it is left behind')
            self._worker = None
        for subscription in self._subscriptions_here:
            self.destroy_subscription(subscription)
        self._subscriptions_here.clear()
        self._input_qos.clear()
        if self._outputs is not None:
            self._outputs.destroy()
            self._outputs = None
        self._pipeline = None
        if self._backend is not None:
            self._backend.close()
            self._backend = None
        self._card = None
        self._seen = Seen()

    def _drain(self) -> bool:
        if self._worker is None:
            return True
        waiting, idle = self._worker.drain(_IDLE_TIMEOUT_S)
        if waiting is not None:
            self._statistics.skipped('inactive')
        return idle

    # --- parameters

    def _check_parameters(self, wanted: Parameters) -> None:
        """Refuse what the core refuses, with its reason (ValueError)."""
        settings.scale(wanted)
        settings.filters(wanted)
        if self._card is not None:
            _check_range(wanted, self._card)

    # --- receiving (executor's thread)

    def _on_image_alone(self, message: Any) -> None:
        self._on_image(message, {})

    def _on_image(self, message: Any, info: Any) -> None:
        entered = time.perf_counter()
        now = self.get_clock().now().nanoseconds
        age_ms = 1e-6 * now - 1e3 * messages.stamp_s(message.header.stamp) if now else math.nan
        statistics = self._statistics
        with statistics.lock:
            self._count_gap(info)
            statistics.received(entered)
            reason = self._reason_to_skip(entered)
            if reason:
                statistics.skipped(reason)
                return
            assert self._worker is not None
            if self._worker.put(Job(message, entered, age_ms)) is not None:
                statistics.dropped_newer()

    def _reason_to_skip(self, now: float) -> str:
        if not self._active or self._worker is None or self._outputs is None:
            return 'inactive'  # rclpy calls subscriptions back in every state
        if not self._outputs.wanted(self.parameters):
            return 'no_subscriber'
        if not self._camera_source.has_info and (
                now - self._activated_at < self.parameters.input.camera_info_wait_s):
            return 'waiting_for_camera_info'
        return ''

    def _count_gap(self, info: Any) -> None:
        """Count images between the last one and this that never reached the callback."""
        number = info.get('publication_sequence_number') if hasattr(info, 'get') else None
        if number is None or number == _SEQUENCE_UNKNOWN:
            return
        before, self._last_sequence = self._last_sequence, int(number)
        # numbers count per publisher: with two on the topic a difference means nothing
        if before is not None and number > before + 1 and (
                self.count_publishers(self._image_topic) == 1):
            self._statistics.lost_in_transport(int(number) - before - 1)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._camera_source.take(messages.calibration(message))

    def _on_input_mismatch(self, topic: str, event: Any) -> None:
        self.get_logger().error(
            f'a publisher on {topic} offers QoS that this node cannot receive (policy: '
            f'{qos.policy_name(event.last_policy_kind)}); see /diagnostics for the names')

    def _on_output_mismatch(self, topic: str, event: Any) -> None:
        self.get_logger().warning(
            f'a subscriber on {topic} asks for QoS that this node does not offer (policy: '
            f'{qos.policy_name(event.last_policy_kind)}); see /diagnostics for the names')

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._reset_asked.set()
        response.success = True
        response.message = 'state from earlier frames is dropped before the next frame'
        return response

    def _on_clock_jump(self, _: Any) -> None:
        self._reset_asked.set()

    # --- processing (worker's thread)

    def _process(self, job: Job) -> None:
        try:
            self._process_frame(job)
        except (ImageError, BackendError, FrameSkippedError) as error:
            self._failed(job, getattr(error, 'reason', 'backend_failed'), str(error))
        except Exception as error:
            if self._closing or not self.context.ok():
                self._failed(job, 'shutdown', 'the process ends')
            else:
                self._failed(job, 'internal_error', f'{type(error).__name__}: {error}\n'
                             f'{traceback.format_exc()}')

    def _failed(self, job: Job, reason: str, text: str) -> None:
        """Count and name a frame of which nothing is published."""
        if not job.processed:
            self._statistics.skipped(reason)
        if reason in diagnostics.HARMLESS or not self.context.ok():
            return
        self._seen = replace(self._seen, last_skip=f'{reason}: {text.splitlines()[0]}')
        now = time.perf_counter()
        if now - self._named_at.get(reason, -math.inf) >= LOG_EVERY_S:
            self._named_at[reason] = now
            self.get_logger().warning(f'image skipped, {reason}: {text}')

    def _process_frame(self, job: Job) -> None:
        outputs, pipeline = self._outputs, self._pipeline
        assert outputs is not None
        assert pipeline is not None
        parameters = self.parameters
        wanted = outputs.wanted(parameters)
        if not self._active or not wanted:
            raise FrameSkippedError('no_subscriber' if self._active else 'inactive')
        header = job.message.header
        stamp = messages.stamp_s(header.stamp)
        self._watch_stamps(stamp, pipeline)

        started = time.perf_counter()
        rgb = messages.to_rgb(job.message)
        decode_ms = 1e3 * (time.perf_counter() - started)
        size_hw = rgb.shape[0], rgb.shape[1]
        resolved = self._camera_source.resolve(size_hw, parameters.input.fov_deg)
        if resolved.problem and self._problem_is_new(resolved):
            self.get_logger().warning(f'{resolved.problem}: {resolved.message}')

        pipeline.update(scale=settings.scale(parameters), filters=settings.filters(parameters),
                        rectify=parameters.input.rectify)
        frame = pipeline.run(rgb, resolved.camera, stamp)
        statistics = self._statistics
        statistics.processed()
        job.processed = True
        stage_ms = {'decode': decode_ms, **frame.timings_ms}
        count = outputs.publish(frame, header, wanted, parameters, stage_ms)
        finished = time.perf_counter()
        latency_ms = 1e3 * (finished - job.entered)
        if count or STATUS in wanted:
            statistics.published()
            statistics.frame_done(finished, latency_ms, job.age_ms, stage_ms)
        if STATUS in wanted:
            backend = pipeline.backend
            rectified = (parameters.input.rectify == 'auto' and resolved.camera is not None
                         and resolved.camera.is_distorted)
            outputs.publish_status(messages.status(
                header, frame, model=pipeline.card.name, backend=backend.name,
                precision=backend.precision, device=backend.device,
                camera_source=resolved.source, rectified=rectified, input_age_ms=job.age_ms,
                latency_ms=latency_ms, stage_ms=stage_ms, counters=statistics.counters(),
                notes=_notes(frame, resolved, wanted)))
        self._seen = Seen(
            camera=resolved, frame=frame, size=f'{size_hw[1]}x{size_hw[0]}',
            encoding=getattr(job.message, 'encoding', getattr(job.message, 'format', '')),
            frame_id=header.frame_id, last_skip=self._seen.last_skip)

    def _watch_stamps(self, stamp: float, pipeline: DepthPipeline) -> None:
        before, self._last_stamp = self._last_stamp, stamp
        if before is not None and stamp < before - CLOCK_JUMP_S:
            self._statistics.clock_jumped()
            self._reset_asked.set()
            self.get_logger().info(
                f"the images' time went back by {before - stamp:.1f} s (a bag that starts again, "
                'or a clock that was set): state from earlier frames is dropped')
        if self._reset_asked.is_set():
            self._reset_asked.clear()
            pipeline.reset()

    def _problem_is_new(self, resolved: Resolved) -> bool:
        before = self._seen.camera
        return before is None or (before.problem, before.source) != (
            resolved.problem, resolved.source)

    # --- reporting (executor's thread)

    def _watch(self) -> None:
        self._guarded(self._watch_input)

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

    def _watch_input(self) -> None:
        """Keep the count of cameras, and say what to do when no image arrives."""
        if not self._image_topic or not self._input_qos:
            return
        self._image_publishers = self.count_publishers(self._image_topic)
        if not self._active:
            return
        since = self._statistics.snapshot().since_image_s
        if since < self.parameters.input.timeout_s:
            if self._advice:
                self.get_logger().info(f'images arrive on {self._image_topic} again')
            self._advice = self._advice_logged = ()
        else:
            self._advice = tuple(self._advise())  # for /diagnostics, as cameras come and go
            # once per silence, and again when other topics are to be seen than the log says
            if self._advice != self._advice_logged and (
                    since >= self._advice_again_at or not self._advice_logged):
                self._advice_logged = self._advice
                self._advice_again_at = since + self.parameters.input.timeout_s
                self.get_logger().warning('\n  '.join(
                    [f'no image on {self._image_topic} for {since:.0f} s', *self._advice]))

    def _advise(self) -> list[str]:
        """Return what exists and the arguments to use."""
        mine = set() if self._outputs is None else set(self._outputs.qos)
        found = qos.image_topics(self, mine)
        lines = []
        here = [item for item in found if item[0] == self._image_topic]
        wanted = 'compressed' if self._compressed else 'raw'
        for topic, transport, words in here:
            if transport != wanted:
                lines.append(f'{topic} carries {transport} images ({words}), this node expects '
                             f'{wanted}: set input.transport to {transport}')
            else:
                lines.append(f'{topic} has a publisher ({words}), but nothing arrives')
                note = qos.large_message_note(self._rmw)
                if note:
                    lines.append(note)
        others = [item for item in found if item[0] != self._image_topic]
        if not found:
            lines.append('there is no image topic at all: is the camera driver running, in the '
                         'same ROS_DOMAIN_ID and reachable by discovery '
                         '(ROS_AUTOMATIC_DISCOVERY_RANGE)?')
        for topic, transport, words in others:
            base = topic.removesuffix('/compressed') if transport == 'compressed' else topic
            extra = ' transport:=compressed' if transport == 'compressed' else ''
            parameter = ' -p input.transport:=compressed' if transport == 'compressed' else ''
            lines.append(f'there is {topic} ({transport}, {words}): use image_topic:={base}'
                         f'{extra} (launch) or --ros-args -r image:={base}{parameter} (run)')
        return lines

    def _publish_diagnostics(self) -> None:
        """Publish /diagnostics."""
        if self._closing or not self.context.ok():
            return
        state = self._node_state()
        backend = self._backend
        self._diagnostics.publish(diagnostics.to_message(
            diagnostics.checks(state), self.get_fully_qualified_name()[1:],
            '' if backend is None else backend.device, self.get_clock().now().to_msg()))
        now = state.snapshot
        self._report_before = now

    def _node_state(self) -> diagnostics.NodeState:
        snapshot, before = self._statistics.snapshot(), self._report_before
        seen, parameters, backend = self._seen, self.parameters, self._backend
        frame, camera = seen.frame, seen.camera
        state = diagnostics.NodeState(
            lifecycle=self._state, failure=self._failure,
            parameter_problems=tuple(self._parameter_server.problems.values()),
            warnings=tuple(self._parameter_server.warnings), snapshot=snapshot,
            skipped_before=before.skipped, received_before=before.received,
            lost_before=before.lost_in_transport, last_skip=seen.last_skip,
            image_topic=self._image_topic, image_publishers=self._image_publishers,
            image_size=seen.size, encoding=seen.encoding, frame_id=seen.frame_id,
            silent=self._active and snapshot.since_image_s >= parameters.input.timeout_s,
            advice=self._advice, camera_info_topic=self._camera_info_topic,
            large_messages=qos.large_message_note(self._rmw),
            use_sim_time=bool(self.get_parameter('use_sim_time').value))
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
        if camera is not None:
            state.camera_source = camera.source
            state.camera_problem, state.camera_message = camera.problem, camera.message
        state.scale = diagnostics.scale_facts(
            settings.scale(parameters) if frame is None else frame.scale)
        if frame is not None:
            state.valid_share, state.removed = frame.valid_share, frame.removed
            state.notes = frame.notes
        if self._outputs is not None:
            state.wanted = tuple(sorted(self._outputs.wanted(parameters)))
            state.mismatches = tuple(qos.mismatches(self, self._input_qos, self._outputs.qos))
            if state.large_messages and frame is not None and (
                    frame.depth.nbytes > qos.LARGE_BYTES):
                state.best_effort_readers = tuple(qos.best_effort_subscribers(
                    self, [self.resolve_topic_name(topic) for topic in (DEPTH, POINTS)]))
        return state


class ConfigureError(ValueError):
    """Configure cannot be done; the text says what to do."""


class FrameSkippedError(ValueError):
    """A frame that is not processed for a reason that is nobody's fault."""

    def __init__(self, reason: str) -> None:
        """Keep the reason for the counters."""
        super().__init__(reason)
        self.reason = reason


def _check_range(parameters: Parameters, card: ModelCard) -> None:
    near, far = settings.filters(parameters).range_m(card.output.range_m)
    if near >= far:
        raise ConfigureError(f'filter.near_m and filter.far_m leave {near:g} to {far:g} m with '
                             f'model {card.name} (its card says {card.output.range_m}); expected '
                             'near < far')


def _notes(frame: DepthFrame, resolved: Resolved, wanted: frozenset[str]) -> list[str]:
    notes = list(frame.notes)
    if resolved.problem:
        notes.append(f'{resolved.problem}: {resolved.message}')
    if resolved.camera is None and needs_camera(wanted):
        notes.append('no points and no CameraInfo: the intrinsics are not known')
    return notes


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

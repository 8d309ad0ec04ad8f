"""One camera of the node: its topics, its intrinsics, its pipeline, its counters."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, replace
import math
import threading
import time
import traceback
from typing import Any

from depth_node.backends import Backend, BackendError
from depth_node.camera import Camera
from depth_node.images import ImageError
from depth_node.model_card import ModelCard
from depth_node.pipeline import DepthFrame, DepthPipeline
from depth_node.ros import diagnostics, messages, qos, settings
from depth_node.ros.calibration_service import CalibrationService
from depth_node.ros.camera_source import CameraSource, Resolved
from depth_node.ros.mount import MountSource
from depth_node.ros.mount import is_wanted as mount_is_wanted
from depth_node.ros.outputs import (
    DEPTH,
    POINTS,
    STATUS,
    Outputs,
    needs_camera,
    topic_of_camera,
)
from depth_node.ros.parameters import Parameters
from depth_node.ros.scale_sources import ScaleSource
from depth_node.ros.statistics import Statistics
from depth_node.ros.transforms import Transforms
from depth_node.scale import Scale
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

# A stamp this much older than the one before is a bag that starts again, not jitter.
CLOCK_JUMP_S = 1.0
LOG_EVERY_S = 5.0
_SEQUENCE_UNKNOWN = 2**64 - 1  # RMW_MESSAGE_INFO_SEQUENCE_NUMBER_UNSUPPORTED


class ConfigureError(ValueError):
    """Configure cannot be done; the text says what to do."""


class FrameSkippedError(ValueError):
    """A frame that is not processed for a reason that is nobody's fault."""

    def __init__(self, reason: str) -> None:
        """Keep the reason for the counters."""
        super().__init__(reason)
        self.reason = reason


@dataclass
class Job:
    """An image on its way to the worker."""

    channel: Channel
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
    notes: tuple[str, ...] = ()  # of the outputs
    refused: tuple[str, ...] = ()


@dataclass
class Silence:
    """What was said about images that do not come."""

    advice: tuple[str, ...] = ()  # for /diagnostics, as cameras come and go
    logged: tuple[str, ...] = ()
    again_at: float = 0.0  # seconds of silence after which the log may say more


@dataclass(frozen=True)
class Surroundings:
    """What a channel asks of the node that owns it.

    Attributes:
        parameters: gives the parameters in force for this camera.
        put: leaves a job for the worker; returns the one that it replaces, if any.
        topics: gives the full names of all topics of all channels, inputs and outputs.
        transforms: TF.
        ending: tells whether the process is on its way out.
    """

    parameters: Callable[[], Parameters]
    put: Callable[[Job], Job | None]
    topics: Callable[[], Set[str]]
    transforms: Transforms
    ending: Callable[[], bool]


class Channel:
    """All that belongs to one camera.  The node keeps what the cameras share.

    Made by the configure transition, closed by cleanup; `activate` and `deactivate` between them.
    The node owns the lifecycle, the parameter server, the backend, the worker thread, services
    and the timers; it calls `process` from the worker for each job that this channel has `put`.

    Threads: the executor's calls everything but `process`, which the worker's calls.  The worker
    alone touches the pipeline and, through it, the backend.
    """

    def __init__(self, node: Node, name: str, backend: Backend, around: Surroundings, *,
                 file_camera: Camera | None = None) -> None:
        """Create the topics.

        Args:
            node: owner of the topics.
            name: of the camera; its inputs are `<name>/image` and `<name>/camera_info`, its
                outputs stand below `~/<name>/`.  '' for the only, unnamed one.
            backend: the open network; shared, not closed here.
            around: what the node provides.
            file_camera: from `input.camera_info_url`.

        Raises:
            ConfigureError: the topics cannot be created.
        """
        self.name = name
        self.active = False
        self._node = node
        self._around = around
        self._says = f'{name}: ' if name else ''
        self._statistics = Statistics()
        self._reported = self._statistics.counters()
        self._seen = Seen()
        self._silence = Silence()
        self._activated_at = 0.0
        self._reset_asked = threading.Event()
        self._last_stamp: float | None = None
        self._last_sequence: int | None = None
        self._image_publishers = 0
        self._named_at: dict[str, float] = {}  # reason of a skip -> when the log named it last
        self._rmw = rclpy.utilities.get_rmw_implementation_identifier()

        wanted = self.parameters
        self._pipeline = DepthPipeline(
            backend, scale=settings.scale(wanted), filters=settings.filters(wanted),
            rectify=wanted.input.rectify)
        self._image_name = f'{name}/image' if name else 'image'
        base = node.resolve_topic_name(self._image_name)
        self._compressed = (base.endswith('/compressed')
                            or wanted.input.transport == 'compressed')
        self.image_topic = base
        if self._compressed and not base.endswith('/compressed'):
            self.image_topic = f'{base}/compressed'
        leaf = base.removesuffix('/compressed').rpartition('/')[2]
        self._info_topic = node.resolve_topic_name(
            f'{name}/camera_info' if name else 'camera_info')
        self._camera_source = CameraSource(
            file_camera, rectified_topic=leaf.startswith('image_rect'), topic=self._info_topic)
        self._subscriptions: list[Subscription] = []
        self._input_qos: dict[str, QoSProfile] = {}
        self._outputs: Outputs | None = None
        self._scale_source: ScaleSource | None = None
        self._mount_source: MountSource | None = None
        self._scale_seen = 'model', 'ok'
        self._calibration: CalibrationService | None = None
        try:
            self._outputs = Outputs(
                node, confidence=backend.card.output.confidence is not None,
                on_mismatch=self._on_output_mismatch, camera=name)
            # a callback with two arguments receives the sequence numbers, where rclpy can
            with_info = hasattr(Subscription, 'CallbackType')
            on_image = self._on_image if with_info else self._on_image_alone
            self._subscribe(CompressedImage if self._compressed else Image, self.image_topic,
                            on_image)
            self._subscribe(CameraInfo, self._info_topic, self._on_camera_info)
            self._scale_source = ScaleSource(node, around.transforms, wanted, backend.card,
                                             on_mismatch=self._on_input_mismatch,
                                             own=around.topics)
            self._mount_source = MountSource(node, around.transforms, wanted.mount.imu_topic,
                                             on_mismatch=self._on_input_mismatch)
            self._calibration = CalibrationService(
                node, name, backend, lambda: self.parameters, lambda: self.active)
        except Exception as error:  # rclpy raises RuntimeError for a QoS word that it cannot read
            self.close()
            raise ConfigureError(
                f'topics cannot be created: {type(error).__name__}: {error}; look at the '
                'qos_overrides parameters (read-only: restart the node after a change) and at '
                'the remapped names') from error

    def _subscribe(self, kind: Any, topic: str, callback: Any) -> None:
        profile = qos.input_qos()
        events = qos.SubscriptionEventCallbacks(
            incompatible_qos=lambda event: self._on_input_mismatch(topic, event))
        self._subscriptions.append(self._node.create_subscription(
            kind, topic, callback, profile, event_callbacks=events,
            qos_overriding_options=qos.overrides()))
        self._input_qos[topic] = profile

    def close(self) -> None:
        """Remove the topics; the worker must be idle."""
        self.active = False
        if self._calibration is not None:
            self._calibration.close()
            self._calibration = None
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._input_qos.clear()
        if self._scale_source is not None:
            self._scale_source.destroy()
            self._scale_source = None
        if self._mount_source is not None:
            self._mount_source.destroy()
            self._mount_source = None
        if self._outputs is not None:
            self._outputs.destroy()
            self._outputs = None

    @property
    def parameters(self) -> Parameters:
        """The parameters in force for this camera."""
        return self._around.parameters()

    @property
    def topics(self) -> set[str]:
        """Full names of the topics."""
        return {*self._input_qos, *(() if self._outputs is None else self._outputs.qos)}

    def activate(self) -> None:
        """Begin to take images, with counters at zero."""
        self._statistics.reset()
        self._reported = self._statistics.counters()
        self._seen = Seen()
        self._silence = Silence()
        self._last_stamp = self._last_sequence = None
        self._activated_at = time.perf_counter()
        self.reset()
        self.active = True

    def reset(self) -> None:
        """Drop what is kept from earlier frames before the next one."""
        self._reset_asked.set()

    def dropped(self) -> None:
        """Count a job of this channel that no worker will see, because the node was stopped."""
        self._statistics.skipped('inactive')

    # --- receiving (executor's thread)

    def _on_image_alone(self, message: Any) -> None:
        self._on_image(message, {})

    def _on_image(self, message: Any, info: Any) -> None:
        entered = time.perf_counter()
        now = self._node.get_clock().now().nanoseconds
        age_ms = 1e-6 * now - 1e3 * messages.stamp_s(message.header.stamp) if now else math.nan
        statistics = self._statistics
        with statistics.lock:
            self._count_gap(info)
            statistics.received(entered)
            reason = self._reason_to_skip(entered)
            if reason:
                statistics.skipped(reason)
                return
            if self._around.put(Job(self, message, entered, age_ms)) is not None:
                statistics.dropped_newer()

    def _reason_to_skip(self, now: float) -> str:
        if not self.active or self._outputs is None:
            return 'inactive'  # rclpy calls subscriptions back in every state
        parameters = self.parameters
        if not self._outputs.wanted(parameters) and not self._calibrating:
            return 'no_subscriber'
        if not self._camera_source.has_info and (
                now - self._activated_at < parameters.input.camera_info_wait_s):
            return 'waiting_for_camera_info'
        return ''

    @property
    def _calibrating(self) -> bool:
        return self._calibration is not None and self._calibration.running

    def _count_gap(self, info: Any) -> None:
        """Count images between the last one and this that never reached the callback."""
        number = info.get('publication_sequence_number') if hasattr(info, 'get') else None
        if number is None or number == _SEQUENCE_UNKNOWN:
            return
        before, self._last_sequence = self._last_sequence, int(number)
        # numbers count per publisher: with two on the topic a difference means nothing
        if before is not None and number > before + 1 and (
                self._node.count_publishers(self.image_topic) == 1):
            self._statistics.lost_in_transport(int(number) - before - 1)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._camera_source.take(messages.calibration(message))

    def _on_input_mismatch(self, topic: str, event: Any) -> None:
        self._node.get_logger().error(
            f'a publisher on {topic} offers QoS that this node cannot receive (policy: '
            f'{qos.policy_name(event.last_policy_kind)}); see /diagnostics for the names')

    def _on_output_mismatch(self, topic: str, event: Any) -> None:
        self._node.get_logger().warning(
            f'a subscriber on {topic} asks for QoS that this node does not offer (policy: '
            f'{qos.policy_name(event.last_policy_kind)}); see /diagnostics for the names')

    # --- processing (worker's thread)

    def process(self, job: Job) -> None:
        """Make depth of an image and publish it; never raises."""
        try:
            self._process_frame(job)
        except (ImageError, BackendError, FrameSkippedError) as error:
            self._failed(job, getattr(error, 'reason', 'backend_failed'), str(error))
        except Exception as error:
            if self._around.ending():
                self._failed(job, 'shutdown', 'the process ends')
            else:
                self._failed(job, 'internal_error', f'{type(error).__name__}: {error}\n'
                             f'{traceback.format_exc()}')

    def _failed(self, job: Job, reason: str, text: str) -> None:
        """Count and name a frame of which nothing is published."""
        if job.processed:
            self._statistics.failed()
        else:
            self._statistics.skipped(reason)
        if reason in diagnostics.HARMLESS or not self._node.context.ok():
            return
        self._seen = replace(self._seen, last_skip=f'{reason}: {text.splitlines()[0]}')
        now = time.perf_counter()
        if now - self._named_at.get(reason, -math.inf) >= LOG_EVERY_S:
            self._named_at[reason] = now
            self._node.get_logger().warning(f'{self._says}image skipped, {reason}: {text}')

    def _process_frame(self, job: Job) -> None:
        outputs, pipeline = self._outputs, self._pipeline
        scale_source, mount_source = self._scale_source, self._mount_source
        assert outputs is not None
        assert scale_source is not None
        assert mount_source is not None
        parameters = self.parameters
        wanted = outputs.wanted(parameters)
        if not self.active or not (wanted or self._calibrating):
            raise FrameSkippedError('no_subscriber' if self.active else 'inactive')
        header = job.message.header
        stamp = messages.stamp_s(header.stamp)
        self._watch_stamps(stamp)

        started = time.perf_counter()
        rgb = messages.to_rgb(job.message)
        decode_ms = 1e3 * (time.perf_counter() - started)
        size_hw = rgb.shape[0], rgb.shape[1]
        resolved = self._camera_source.resolve(size_hw, parameters.input.fov_deg)
        if resolved.problem and self._problem_is_new(resolved):
            self._node.get_logger().warning(
                f'{self._says}{resolved.problem}: {resolved.message}')

        mount = mount_source.find(header, parameters).mount
        pipeline.update(scale=scale_source.choose(header, parameters, mount),
                        filters=settings.filters(parameters), rectify=parameters.input.rectify)
        frame = pipeline.run(rgb, resolved.camera, stamp)
        self._tell_scale(frame.scale)
        statistics = self._statistics
        statistics.processed()
        job.processed = True
        stage_ms = {'decode': decode_ms, **frame.timings_ms}
        count = outputs.publish(frame, header, wanted, parameters, stage_ms, mount)
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
                header, frame, camera=self.name, model=pipeline.card.name, backend=backend.name,
                precision=backend.precision, device=backend.device,
                camera_source=resolved.source, rectified=rectified, input_age_ms=job.age_ms,
                latency_ms=latency_ms, stage_ms=stage_ms, counters=statistics.counters(),
                obstacle=outputs.obstacle, notes=[
                    *_notes(frame, resolved, wanted), *outputs.refused, *outputs.notes]))
        self._seen = Seen(
            camera=resolved, frame=frame, size=f'{size_hw[1]}x{size_hw[0]}',
            encoding=getattr(job.message, 'encoding', getattr(job.message, 'format', '')),
            frame_id=header.frame_id, last_skip=self._seen.last_skip, notes=outputs.notes,
            refused=outputs.refused)
        if self._calibration is not None:  # last: it runs the network again
            self._calibration.take(frame, rgb, resolved.camera)

    def _watch_stamps(self, stamp: float) -> None:
        before, self._last_stamp = self._last_stamp, stamp
        if before is not None and stamp < before - CLOCK_JUMP_S:
            self._statistics.clock_jumped()
            self._reset_asked.set()
            self._around.transforms.forget()
            self._node.get_logger().info(
                f"{self._says}the images' time went back by {before - stamp:.1f} s (a bag that "
                'starts again, or a clock that was set): state from earlier frames is dropped')
        if self._reset_asked.is_set():
            self._reset_asked.clear()
            self._pipeline.reset()
            if self._scale_source is not None and self._mount_source is not None:
                self._scale_source.reset()
                self._mount_source.reset()

    def _problem_is_new(self, resolved: Resolved) -> bool:
        before = self._seen.camera
        return before is None or (before.problem, before.source) != (
            resolved.problem, resolved.source)

    def _tell_scale(self, scale: Scale) -> None:
        """Log where the scale changes its source or state; not again soon, if it wavers."""
        before, self._scale_seen = self._scale_seen, (scale.source, scale.state)
        if self._scale_seen == before:
            return
        now, key = time.perf_counter(), f'scale {scale.source} {scale.state}'
        if now - self._named_at.get(key, -math.inf) < LOG_EVERY_S:
            return
        self._named_at[key] = now
        log = self._node.get_logger()
        if scale.state == 'ok':
            numbers = ', '.join(f'{name} {value}' for name, value in diagnostics.scale_facts(
                scale).items() if name not in ('source', 'state'))
            log.info(f'{self._says}scale from {scale.source}: {numbers}')
        else:
            problem = '' if self._scale_source is None else self._scale_source.problem
            reasons = '; '.join(dict.fromkeys(filter(None, (problem, scale.note))))
            log.warning(f'{self._says}scale from {scale.source} is {scale.state}: {reasons}')

    # --- reporting (executor's thread)

    def watch_sources(self) -> None:
        """Keep the subscriptions of scale and mount as the parameters want them."""
        parameters = self.parameters
        if self._scale_source is not None:
            self._scale_source.watch(parameters, active=self.active)
        if self._mount_source is not None:
            self._mount_source.watch(parameters, active=self.active)

    def watch_input(self) -> None:
        """Keep the count of publishers, and say what to do when no image arrives."""
        if self._calibration is not None:
            self._calibration.watch()
        self._image_publishers = self._node.count_publishers(self.image_topic)
        if not self.active:
            return
        log, silence = self._node.get_logger(), self._silence
        since = self._statistics.snapshot().since_image_s
        if since < self.parameters.input.timeout_s:
            if silence.advice:
                log.info(f'images arrive on {self.image_topic} again')
            self._silence = Silence()
            return
        silence.advice = tuple(self._advise())
        # once per silence, and again when other topics are to be seen than the log says
        if silence.advice != silence.logged and (
                since >= silence.again_at or not silence.logged):
            silence.logged = silence.advice
            silence.again_at = since + self.parameters.input.timeout_s
            log.warning('\n  '.join(
                [f'no image on {self.image_topic} for {since:.0f} s', *silence.advice]))

    def _advise(self) -> list[str]:
        """Return what exists and the arguments to use."""
        found = qos.image_topics(self._node, self._around.topics() - {self.image_topic})
        lines = []
        wanted = 'compressed' if self._compressed else 'raw'
        for topic, transport, words in (item for item in found if item[0] == self.image_topic):
            if transport != wanted:
                lines.append(f'{topic} carries {transport} images ({words}), this node expects '
                             f'{wanted}: set {self._parameter("input.transport")} to {transport}')
            else:
                lines.append(f'{topic} has a publisher ({words}), but nothing arrives')
                note = qos.large_message_note(self._rmw)
                if note:
                    lines.append(note)
        if not found:
            lines.append('there is no image topic at all: is the camera driver running, in the '
                         'same ROS_DOMAIN_ID and reachable by discovery '
                         '(ROS_AUTOMATIC_DISCOVERY_RANGE)?')
        for topic, transport, words in (item for item in found if item[0] != self.image_topic):
            base, extra, parameter = topic, '', ''
            if transport == 'compressed':
                base, extra = topic.removesuffix('/compressed'), ' transport:=compressed'
                parameter = f' -p {self._parameter("input.transport")}:=compressed'
            launch = (f'{base} in the list image_topic:= (launch) or ' if self.name
                      else f'image_topic:={base}{extra} (launch) or ')
            lines.append(f'there is {topic} ({transport}, {words}): use {launch}--ros-args '
                         f'-r {self._image_name}:={base}{parameter} (run)')
        return lines

    def _parameter(self, name: str) -> str:
        """Return the name under which a parameter is set for this camera."""
        return f'{self.name}.{name}' if self.name else name

    def facts(self) -> diagnostics.CameraState:
        """Return what /diagnostics tells of this camera.

        "Before" in the result is the last call; one reporter alone may call this.
        """
        snapshot, before = self._statistics.snapshot(), self._reported
        seen, parameters = self._seen, self.parameters
        frame, camera = seen.frame, seen.camera
        state = diagnostics.CameraState(
            name=self.name, snapshot=snapshot, skipped_before=before.skipped,
            received_before=before.received, lost_before=before.lost_in_transport,
            published_before=before.published, failed_before=before.failed,
            last_skip=seen.last_skip, image_topic=self.image_topic,
            image_publishers=self._image_publishers, image_size=seen.size,
            encoding=seen.encoding, frame_id=seen.frame_id,
            silent=self.active and snapshot.since_image_s >= parameters.input.timeout_s,
            advice=self._silence.advice, camera_info_topic=self._info_topic,
            large_messages=qos.large_message_note(self._rmw))
        if camera is not None:
            state.camera_source = camera.source
            state.camera_problem, state.camera_message = camera.problem, camera.message
        state.scale = diagnostics.scale_facts(
            settings.scale(parameters) if frame is None else frame.scale)
        inputs = dict(self._input_qos)
        if self._scale_source is not None:
            state.scale.update(self._scale_source.facts())
            inputs.update(self._scale_source.qos)
        if self._mount_source is not None:
            if mount_is_wanted(parameters):
                state.mount = self._mount_source.facts()
            inputs.update(self._mount_source.qos)
        if frame is not None:
            state.valid_share, state.removed = frame.valid_share, frame.removed
            state.notes = (*frame.notes, *seen.notes)
            state.refused = seen.refused
        if self._outputs is not None:
            state.wanted = tuple(sorted(self._outputs.wanted(parameters)))
            state.mismatches = tuple(
                qos.mismatches(self._node, inputs, self._outputs.qos))
            if state.large_messages and frame is not None and (
                    frame.depth.nbytes > qos.LARGE_BYTES):
                state.best_effort_readers = tuple(qos.best_effort_subscribers(
                    self._node, [self._node.resolve_topic_name(topic_of_camera(topic, self.name))
                                 for topic in (DEPTH, POINTS)]))
        self._reported = snapshot
        return state


def check_range(parameters: Parameters, card: ModelCard) -> None:
    """Refuse filter limits that leave nothing of the network's range.

    Raises:
        ConfigureError: they do.
    """
    near, far = settings.filters(parameters).range_m(card.output.range_m)
    if near >= far:
        raise ConfigureError(f'filter.near_m and filter.far_m leave {near:g} to {far:g} m with '
                             f'model {card.name} (its card says {card.output.range_m}); expected '
                             'near < far')
    cloud = parameters.cloud
    if cloud.far_points and cloud.far_m > far:
        raise ConfigureError(f'cloud.far_points at {cloud.far_m:g} m (cloud.far_m), but depths '
                             f'end at {far:g} m: what lies beyond is not known to be free; lower '
                             'cloud.far_m')


def _notes(frame: DepthFrame, resolved: Resolved, wanted: frozenset[str]) -> list[str]:
    notes = list(frame.notes)
    if resolved.problem:
        notes.append(f'{resolved.problem}: {resolved.message}')
    if resolved.camera is None and needs_camera(wanted):
        notes.append('no points, no scan and no CameraInfo: the intrinsics are not known')
    return notes

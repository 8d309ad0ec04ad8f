"""The topics that the node publishes, each made only while somebody listens."""

from __future__ import annotations

from collections.abc import Callable
import time
from typing import Any

from depth_node.camera import Camera
from depth_node.geometry import CloudPacker
from depth_node.ground import Mount
from depth_node.images import colorize
from depth_node.obstacles import NearestObstacle, Obstacle, ScanError, ScanMaker
from depth_node.pipeline import DepthFrame
from depth_node.ros import messages, settings
from depth_node.ros.parameters import Parameters
from depth_node.ros.qos import PublisherEventCallbacks, output_qos, overrides
from depth_node.ros.transforms import NO_TF2
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2
from std_msgs.msg import Header

DEPTH, CAMERA_INFO, POINTS = '~/depth/image', '~/depth/camera_info', '~/points'
SCAN, RECTIFIED = '~/scan', '~/image_rect'
COLOR, CONFIDENCE, STATUS = '~/depth/color', '~/confidence', '~/status'
_NEEDS_CAMERA = (CAMERA_INFO, POINTS, SCAN)


class Outputs:
    """Publishers of depth, points and status, created by configure and destroyed by cleanup.

    Attributes:
        qos: of each output by its full topic name.
        notes: remarks on the frame published last.
        refused: why outputs that somebody subscribes to were not made of it.
        obstacle: the nearest one in it; sought only for ~/status.
    """

    def __init__(self, node: Node, *, confidence: bool,
                 on_mismatch: Callable[[str, Any], None], camera: str = '') -> None:
        """Create the publishers.

        Args:
            node: their owner.
            camera: name of the camera where a node serves several; its topics stand below
                ~/<camera>/.
            confidence: whether the network has a confidence output.
            on_mismatch: told the topic and the event when a subscriber asks for incompatible QoS.
        """
        self._node = node
        self._camera = camera
        self._publishers: dict[str, Any] = {}
        self._frames: Any = None
        self.notes: tuple[str, ...] = ()
        self.refused: tuple[str, ...] = ()
        self.obstacle = Obstacle('')
        self.qos: dict[str, QoSProfile] = {}
        kinds: list[tuple[str, Any]] = [
            (DEPTH, Image), (CAMERA_INFO, CameraInfo), (POINTS, PointCloud2), (SCAN, LaserScan),
            (COLOR, Image), (RECTIFIED, Image)]
        if confidence:
            kinds.append((CONFIDENCE, Image))
        if messages.DepthStatus is not None:
            kinds.append((STATUS, messages.DepthStatus))
        try:
            for topic, kind in kinds:
                self._create(topic, kind, on_mismatch)
        except Exception:
            self.destroy()
            raise
        self._frames, self._no_frames = _broadcaster(node)
        self._packer: CloudPacker | None = None
        self._scan_maker: ScanMaker | None = None
        self._nearest: NearestObstacle | None = None

    def _create(self, topic: str, kind: Any, on_mismatch: Callable[[str, Any], None]) -> None:
        name = topic_of_camera(topic, self._camera)
        full = self._node.resolve_topic_name(name)
        profile = output_qos()
        events = PublisherEventCallbacks(
            incompatible_qos=lambda event: on_mismatch(full, event))
        self._publishers[topic] = self._node.create_publisher(
            kind, name, profile, event_callbacks=events, qos_overriding_options=overrides())
        self.qos[full] = profile

    def destroy(self) -> None:
        """Remove the publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        self._publishers.clear()
        if self._frames is not None:
            self._node.destroy_publisher(self._frames.pub_tf)
            self._frames = None

    def wanted(self, parameters: Parameters) -> frozenset[str]:
        """Return the topics that are switched on and have a subscriber."""
        off = set()
        if not parameters.depth.publish:
            off |= {DEPTH, CAMERA_INFO}
        if not parameters.cloud.publish:
            off.add(POINTS)
        if not parameters.scan.publish:
            off.add(SCAN)
        return frozenset(
            topic for topic, publisher in self._publishers.items()
            if topic not in off and publisher.get_subscription_count() > 0)

    def publish(self, frame: DepthFrame, header: Header, wanted: frozenset[str],
                parameters: Parameters, stage_ms: dict[str, float],
                mount: Mount | None = None) -> int:
        """Publish everything wanted but the status, and note the time it took in `stage_ms`.

        Args:
            frame: depth of one image.
            header: of that image.
            wanted: topics to make.
            parameters: in force.
            stage_ms: takes the stages `cloud`, `scan`, `obstacle` (each where it was made) and
                `publish`.
            mount: how the camera hangs above the floor; None where that is not known.

        Returns:
            How many messages were published.
        """
        started = time.perf_counter()
        notes: list[str] = []
        refused: list[str] = []
        parts_ms: dict[str, float] = {}
        ready: list[tuple[str, Any]] = []
        if DEPTH in wanted:
            ready.append((DEPTH, messages.depth_image(header, frame.depth,
                                                      parameters.depth.encoding)))
        camera = frame.camera
        if camera is not None and CAMERA_INFO in wanted:
            ready.append((CAMERA_INFO, messages.camera_info(header, camera)))
        if camera is not None and POINTS in wanted:
            begun = time.perf_counter()
            ready.append((POINTS, self._cloud(frame, camera, header, parameters, mount, notes)))
            parts_ms['cloud'] = 1e3 * (time.perf_counter() - begun)
        transform = None
        if camera is not None and SCAN in wanted:
            begun = time.perf_counter()
            try:
                scan, transform = self._scan(frame, camera, header, parameters, mount, notes)
                ready.append((SCAN, scan))
            except ScanError as error:
                refused.append(f'no ~/scan: {error}')
            parts_ms['scan'] = 1e3 * (time.perf_counter() - begun)
        self.obstacle = Obstacle('')
        if camera is not None and STATUS in wanted:
            begun = time.perf_counter()
            self.obstacle = self._find_obstacle(frame, camera, parameters, mount)
            parts_ms['obstacle'] = 1e3 * (time.perf_counter() - begun)
        if COLOR in wanted:
            near, far = parameters.depth.color_near_m, parameters.depth.color_far_m
            ready.append((COLOR, messages.image(header, colorize(frame.depth, near, far),
                                                'bgr8')))
        if RECTIFIED in wanted:
            ready.append((RECTIFIED, messages.image(header, frame.rgb, 'rgb8')))
        if CONFIDENCE in wanted and frame.confidence is not None:
            ready.append((CONFIDENCE, messages.image(header, frame.confidence, '32FC1')))
        if transform is not None:  # before the scan that needs it
            self._frames.sendTransform(transform)
        for topic, message in ready:
            self._publishers[topic].publish(message)
        total_ms = 1e3 * (time.perf_counter() - started)
        stage_ms.update(parts_ms, publish=total_ms - sum(parts_ms.values()))
        self.notes, self.refused = tuple(notes), tuple(refused)
        return len(ready)

    def _cloud(self, frame: DepthFrame, camera: Camera, header: Header, parameters: Parameters,
               mount: Mount | None, notes: list[str]) -> PointCloud2:
        layout = settings.cloud(parameters, confidence=frame.confidence is not None)
        if parameters.cloud.confidence and frame.confidence is None:
            notes.append('no field confidence in the cloud: the network has no such output')
        if self._packer is None or self._packer.camera != camera or self._packer.layout != layout:
            self._packer = CloudPacker(camera, layout)
        cloud = self._packer.pack(frame.depth, frame.rgb, confidence=frame.confidence,
                                  mount=mount)
        frame.removed.update({f'cloud_{reason}': count
                              for reason, count in cloud.removed.items()})
        if cloud.note:
            notes.append(cloud.note)
        return messages.point_cloud(header, cloud)

    def _scan(self, frame: DepthFrame, camera: Camera, header: Header, parameters: Parameters,
              mount: Mount | None, notes: list[str]) -> tuple[LaserScan, Any]:
        """Return the scan, and the transform of its frame where that is to be published."""
        wanted, maker = settings.scan(parameters), self._scan_maker
        if maker is None or maker.camera != camera or maker.settings != wanted:
            maker = self._scan_maker = ScanMaker(camera, wanted)
        scan = maker.scan(frame.depth, mount)
        if scan.note:
            notes.append(scan.note)
        frame_id, transform = parameters.scan.frame, None
        if not frame_id:
            frame_id = level_frame_of(header.frame_id)
            if parameters.scan.publish_tf and self._frames is not None:
                transform = messages.level_frame(header, frame_id, scan.axes)
            elif parameters.scan.publish_tf:
                notes.append(f'{frame_id}, the frame of ~/scan, is not on /tf: {self._no_frames}; '
                             'publish it yourself, or name a level frame of yours in scan.frame')
        return messages.laser_scan(header, frame_id, scan, wanted), transform

    def _find_obstacle(self, frame: DepthFrame, camera: Camera, parameters: Parameters,
                       mount: Mount | None) -> Obstacle:
        band, nearest = settings.scan(parameters), self._nearest
        if nearest is None or nearest.camera != camera or nearest.band != band:
            nearest = self._nearest = NearestObstacle(camera, band)
        return nearest.find(frame.depth, mount)

    def publish_status(self, message: Any) -> None:
        """Publish ~/status."""
        self._publishers[STATUS].publish(message)


def _broadcaster(node: Node) -> tuple[Any, str]:
    """Return what publishes on /tf, or None and why there is none."""
    try:
        from tf2_ros import TransformBroadcaster
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == 'tf2_ros'
        return None, NO_TF2 if missing else f'tf2_ros cannot be imported: {error}'
    return TransformBroadcaster(node), ''


def level_frame_of(frame_id: str) -> str:
    """Return the name of the level frame at a camera: cam_level for cam_optical_frame."""
    return (frame_id.removesuffix('_optical_frame') or 'camera') + '_level'


def topic_of_camera(topic: str, camera: str) -> str:
    """Return the name of an output of a camera: ~/points of front is ~/front/points."""
    return topic.replace('~/', f'~/{camera}/', 1) if camera else topic


def needs_camera(wanted: frozenset[str]) -> bool:
    """Return whether one of the topics cannot be made without intrinsics."""
    return any(topic in wanted for topic in _NEEDS_CAMERA)

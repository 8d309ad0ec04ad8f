"""The topics that the node publishes, each made only while somebody listens."""

from __future__ import annotations

from collections.abc import Callable
import time
from typing import Any

from depth_node.camera import Camera
from depth_node.geometry import CloudLayout, CloudPacker
from depth_node.images import colorize
from depth_node.pipeline import DepthFrame
from depth_node.ros import messages
from depth_node.ros.parameters import Parameters
from depth_node.ros.qos import PublisherEventCallbacks, output_qos, overrides
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

DEPTH, CAMERA_INFO, POINTS = '~/depth/image', '~/depth/camera_info', '~/points'
COLOR, CONFIDENCE, STATUS = '~/depth/color', '~/confidence', '~/status'
_NEEDS_CAMERA = (CAMERA_INFO, POINTS)
_WHOLE = 1 << 20  # px; CloudPacker cuts a region off at the image's border


class Outputs:
    """Publishers of depth, points and status, created by configure and destroyed by cleanup."""

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
        self.qos: dict[str, QoSProfile] = {}
        kinds: list[tuple[str, Any]] = [
            (DEPTH, Image), (CAMERA_INFO, CameraInfo), (POINTS, PointCloud2), (COLOR, Image)]
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
        self._packer: CloudPacker | None = None

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

    def wanted(self, parameters: Parameters) -> frozenset[str]:
        """Return the topics that are switched on and have a subscriber."""
        off = set()
        if not parameters.depth.publish:
            off |= {DEPTH, CAMERA_INFO}
        if not parameters.cloud.publish:
            off.add(POINTS)
        return frozenset(
            topic for topic, publisher in self._publishers.items()
            if topic not in off and publisher.get_subscription_count() > 0)

    def publish(self, frame: DepthFrame, header: Header, wanted: frozenset[str],
                parameters: Parameters, stage_ms: dict[str, float]) -> int:
        """Publish everything wanted but the status, and note the time it took in `stage_ms`.

        Returns:
            How many messages were published.
        """
        started = time.perf_counter()
        ready: list[tuple[str, Any]] = []
        if DEPTH in wanted:
            ready.append((DEPTH, messages.depth_image(header, frame.depth,
                                                      parameters.depth.encoding)))
        if frame.camera is not None and CAMERA_INFO in wanted:
            ready.append((CAMERA_INFO, messages.camera_info(header, frame.camera)))
        packed = time.perf_counter()
        if frame.camera is not None and POINTS in wanted:
            packer = self._packer_for(frame.camera, parameters)
            with_rgb = parameters.cloud.rgb
            cloud = packer.pack(frame.depth, frame.rgb if with_rgb else None)
            ready.append((POINTS, messages.point_cloud(header, cloud, with_rgb=with_rgb)))
            stage_ms['cloud'] = 1e3 * (time.perf_counter() - packed)
        if COLOR in wanted:
            near, far = parameters.depth.color_near_m, parameters.depth.color_far_m
            ready.append((COLOR, messages.image(header, colorize(frame.depth, near, far),
                                                'bgr8')))
        if CONFIDENCE in wanted and frame.confidence is not None:
            ready.append((CONFIDENCE, messages.image(header, frame.confidence, '32FC1')))
        for topic, message in ready:
            self._publishers[topic].publish(message)
        stage_ms['publish'] = (1e3 * (time.perf_counter() - started) - stage_ms.get('cloud', 0.0))
        return len(ready)

    def publish_status(self, message: Any) -> None:
        """Publish ~/status."""
        self._publishers[STATUS].publish(message)

    def _packer_for(self, camera: Camera, parameters: Parameters) -> CloudPacker:
        cloud = parameters.cloud
        u0, v0, width, height = cloud.roi
        roi = None if cloud.roi == (0, 0, 0, 0) else (u0, v0, width or _WHOLE, height or _WHOLE)
        layout = CloudLayout(stride=cloud.stride, organised=cloud.organised, roi=roi)
        if self._packer is None or self._packer.camera != camera or self._packer.layout != layout:
            self._packer = CloudPacker(camera, layout)
        return self._packer


def topic_of_camera(topic: str, camera: str) -> str:
    """Return the name of an output of a camera: ~/points of front is ~/front/points."""
    return topic.replace('~/', f'~/{camera}/', 1) if camera else topic


def needs_camera(wanted: frozenset[str]) -> bool:
    """Return whether one of the topics cannot be made without intrinsics."""
    return any(topic in wanted for topic in _NEEDS_CAMERA)

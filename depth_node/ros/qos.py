"""QoS of the topics, what does not match, and whether large messages can get through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import os
from pathlib import Path
import re
from typing import Any

from depth_node.ros.launch_arguments import profile_given, profile_variable
from rclpy.node import Node
from rclpy.qos import (
    QoSCompatibility,
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_check_compatible,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks

__all__ = [
    'PublisherEventCallbacks', 'SubscriptionEventCallbacks', 'best_effort_subscribers', 'describe',
    'image_topics', 'input_qos', 'large_message_note', 'mismatches', 'output_qos', 'overrides',
    'policy_name', 'sensor_qos']

_ENDLESS_NS = 2**62  # 146 years
# Fast DDS' default shared memory segment; larger best-effort messages get lost.
LARGE_BYTES = 512 * 1024
IMAGE_TYPES = {'sensor_msgs/msg/Image': 'raw', 'sensor_msgs/msg/CompressedImage': 'compressed'}


def input_qos() -> QoSProfile:
    """Return sensor data QoS, newest message only: matches every volatile or latched camera."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1,
                      reliability=QoSReliabilityPolicy.BEST_EFFORT,
                      durability=QoSDurabilityPolicy.VOLATILE)


def sensor_qos() -> QoSProfile:
    """Return sensor data QoS with room for the messages of some images."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=5,
                      reliability=QoSReliabilityPolicy.BEST_EFFORT,
                      durability=QoSDurabilityPolicy.VOLATILE)


def output_qos() -> QoSProfile:
    """Return reliable, newest message only: matches reliable and best-effort subscribers."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1,
                      reliability=QoSReliabilityPolicy.RELIABLE,
                      durability=QoSDurabilityPolicy.VOLATILE)


def overrides() -> QoSOverridingOptions:
    """Return which policies a user may override by `qos_overrides.<topic>...` parameters."""
    return QoSOverridingOptions(policy_kinds=(
        QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY,
        QoSPolicyKind.DURABILITY))


def describe(profile: QoSProfile) -> str:
    """Return the two policies on which matching depends, in words."""
    return (f'{profile.reliability.name.lower().replace("_", " ")}, '
            f'{profile.durability.name.lower().replace("_", " ")}')


def policy_name(kind: Any) -> str:
    """Return the name of the policy that an incompatible-QoS event blames."""
    try:
        return str(QoSPolicyKind(kind).name.lower().replace('_', ' '))
    except ValueError:
        return str(kind)


def mismatches(node: Node, subscribed: Mapping[str, QoSProfile],
               published: Mapping[str, QoSProfile]) -> list[str]:
    """Return one sentence per endpoint elsewhere that can never talk to this node.

    Args:
        node: asks the ROS graph.
        subscribed: full topic name -> QoS of this node's subscription.
        published: full topic name -> QoS of this node's publisher.
    """
    found = []
    for topic, mine in subscribed.items():
        for other in node.get_publishers_info_by_topic(topic):
            verdict, reason = qos_check_compatible(_comparable(other.qos_profile), mine)
            if verdict == QoSCompatibility.ERROR:
                found.append(
                    f'{topic}: publisher {_node_name(other)} offers '
                    f'{describe(other.qos_profile)}, this node asks for {describe(mine)} '
                    f'({_first_line(reason)}); nothing arrives from it; set '
                    f'qos_overrides.{topic}.subscription.* or change the publisher')
    for topic, mine in published.items():
        for other in node.get_subscriptions_info_by_topic(topic):
            verdict, reason = qos_check_compatible(mine, _comparable(other.qos_profile))
            if verdict == QoSCompatibility.ERROR:
                found.append(
                    f'{topic}: subscriber {_node_name(other)} asks for '
                    f'{describe(other.qos_profile)}, this node offers {describe(mine)} '
                    f'({_first_line(reason)}); it receives nothing; change the subscriber or set '
                    f'qos_overrides.{topic}.publisher.*')
    return found


def _comparable(theirs: QoSProfile) -> QoSProfile:
    """Return a discovered profile with "no deadline" as this side writes it.

    The graph gives the largest number of nanoseconds, rclpy's own profiles give 0, and
    `qos_check_compatible` takes the first for a deadline.
    """
    plain = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1,
                       reliability=theirs.reliability, durability=theirs.durability,
                       liveliness=theirs.liveliness)
    for name in ('deadline', 'liveliness_lease_duration'):
        if getattr(theirs, name).nanoseconds < _ENDLESS_NS:
            setattr(plain, name, getattr(theirs, name))
    return plain


def best_effort_subscribers(node: Node, topics: Iterable[str]) -> list[str]:
    """Return `<node> on <topic>` for every best-effort subscriber of these topics."""
    return [f'{_node_name(other)} on {topic}' for topic in topics
            for other in node.get_subscriptions_info_by_topic(topic)
            if other.qos_profile.reliability == QoSReliabilityPolicy.BEST_EFFORT]


def _node_name(endpoint: Any) -> str:
    name = endpoint.node_name
    if not name or name.startswith('_'):  # rcl: _NODE_NAME_UNKNOWN_
        return 'of a node whose name is not known (yet), or of another DDS program'
    return f'{endpoint.node_namespace.rstrip("/")}/{name}'


def _first_line(reason: str) -> str:
    text = str(reason).strip().splitlines()
    return re.sub(r'^ERROR:\s*', '', text[0]).rstrip(';. ') if text else 'incompatible'


def image_topics(node: Node, without: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return (topic, transport, QoS in words) of every image topic that has a publisher.

    Args:
        node: asks the ROS graph.
        without: topic names to leave out, such as the node's own outputs.
    """
    left_out = set(without)
    found = []
    for topic, types in sorted(node.get_topic_names_and_types()):
        transport = next((IMAGE_TYPES[name] for name in types if name in IMAGE_TYPES), None)
        if transport is None or topic in left_out:
            continue
        publishers = node.get_publishers_info_by_topic(topic)
        if publishers:
            words = ' / '.join(dict.fromkeys(describe(item.qos_profile) for item in publishers))
            found.append((topic, transport, words))
    return found


SHARED_MEMORY = '/dev/shm'


def large_message_note(rmw: str) -> str:
    """Return what stands in the way of large messages with this middleware; '' if nothing does.

    Fast DDS by default cuts shared memory to 512 kB and the UDP buffer to what the kernel gives:
    a best-effort image of 640x480 is larger than both and is lost nearly always.
    """
    if 'fastrtps' not in rmw:
        return ''
    path = profile_given(os.environ)
    if not path:
        return ('no Fast DDS profile is set: best-effort images above 512 kB get lost; set '
                f'{profile_variable(os.environ)} to config/fastdds_large_messages.xml of this '
                "package in the camera's process and in this one (the launch file sets it for the "
                'latter)')
    if not Path(path).is_file():
        return f'the Fast DDS profile {path} does not exist, so the default buffers are in use'
    return _shared_memory_note(Path(path))


def _shared_memory_note(profile: Path) -> str:
    """Return why a profile's segments of shared memory do not fit into this machine's; '' if so.

    Fast DDS reserves a whole segment for each process, and goes on without shared memory where
    that fails.
    """
    try:
        segments = [int(size) for size in re.findall(
            r'<segment_size>\s*(\d+)\s*</segment_size>', profile.read_text(encoding='utf-8'))]
        space = os.statvfs(SHARED_MEMORY)
    except (OSError, ValueError):
        return ''
    there = space.f_blocks * space.f_frsize
    if not segments or there > 2 * max(segments):  # the camera's process and this one
        return ''
    return (f'{SHARED_MEMORY} has {there / 1e6:.0f} MB, and each process takes '
            f'{max(segments) / 1e6:.0f} MB of it by the profile {profile}: without shared memory '
            'large images get lost; give a container --shm-size=512m or --ipc=host')

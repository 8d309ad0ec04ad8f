"""Endpoints that the ROS graph shows, against those that this node has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import time
from typing import Any

from depth_node.ros import qos
import pytest
import rclpy
from rclpy.duration import Duration
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSProfile,
    QoSReliabilityPolicy,
)
from sensor_msgs.msg import Image

TOPIC = '/qos_test/image'


@pytest.fixture
def found() -> Iterator[Callable[[QoSProfile], list[str]]]:
    """Give a function: the complaints of a publisher of the node about a subscriber."""
    context = rclpy.Context()
    rclpy.init(context=context)
    publisher = rclpy.create_node('publishes', context=context)
    subscriber = rclpy.create_node('subscribes', context=context)
    mine = qos.output_qos()
    publisher.create_publisher(Image, TOPIC, mine)

    def complaints(theirs: QoSProfile) -> list[str]:
        subscriber.create_subscription(Image, TOPIC, lambda _: None, theirs)
        end = time.monotonic() + 10
        while not publisher.get_subscriptions_info_by_topic(TOPIC):
            assert time.monotonic() < end, 'the subscriber was not discovered'
            time.sleep(0.05)
        return qos.mismatches(publisher, {}, {TOPIC: mine})

    yield complaints
    publisher.destroy_node()
    subscriber.destroy_node()
    rclpy.shutdown(context=context)


def profile(**policies: Any) -> QoSProfile:
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1, **policies)


@pytest.mark.parametrize('reliability', ['RELIABLE', 'BEST_EFFORT'])
def test_usual_subscribers_match(found: Callable[[QoSProfile], list[str]], reliability: str):
    # the graph names an endless deadline by a number, which must not count as a deadline
    assert found(profile(reliability=QoSReliabilityPolicy[reliability])) == []


@pytest.mark.parametrize('policies', [
    {'durability': QoSDurabilityPolicy.TRANSIENT_LOCAL},
    {'deadline': Duration(seconds=1)},
    {'liveliness_lease_duration': Duration(seconds=1)},
], ids=lambda policies: next(iter(policies)))
def test_subscriber_that_can_get_nothing_is_named(
        found: Callable[[QoSProfile], list[str]], policies: dict[str, Any]):
    [sentence] = found(profile(reliability=QoSReliabilityPolicy.RELIABLE, **policies))
    assert TOPIC in sentence
    assert 'receives nothing' in sentence

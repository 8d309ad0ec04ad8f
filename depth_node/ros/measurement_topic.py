"""A subscription to a sensor that need not be there, and what keeps its messages away."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
import time
import traceback
from typing import Any

from depth_node.ros import qos
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription

SILENT_S = 2.0


class MeasurementTopic:
    """Subscribes while it is wanted, in the type that the topic turns out to have.

    Every method belongs to the executor's thread; `problem` may be read by any.

    Attributes:
        topic: full name.
        problem: what keeps messages away, with the remedy; '' while they come.
        qos: of the subscription, by topic name; empty while there is none.
    """

    def __init__(self, node: Node, topic: str, types: Mapping[str, Any], parameter: str,
                 callback: Callable[[Any], None], *, on_mismatch: Callable[[str, Any], None],
                 only: str = '', own: Callable[[], Collection[str]] = tuple) -> None:
        """Do nothing until `watch`.

        Args:
            node: owner of the subscription.
            topic: name of the topic.
            types: name of each usable type, such as `sensor_msgs/msg/Imu` -> its class.
            parameter: that names the topic, for messages.
            callback: gets each message; what it raises is logged.
            on_mismatch: told the topic and the event where a publisher's QoS does not match.
            only: the one of `types` to take; '' asks the graph.
            own: full names of the node's own topics, which measure nothing but the network.
        """
        self._node = node
        self._types = types
        self._parameter = parameter
        self._callback = callback
        self._on_mismatch = on_mismatch
        self._only = only
        self._own = own
        self._subscription: Subscription | None = None
        self._type = ''
        self._since = 0.0  # time.monotonic of the subscription, or of the newest message
        self._count = 0
        self.topic: str = node.resolve_topic_name(topic)
        self.problem = ''
        self.qos: dict[str, QoSProfile] = {}

    def watch(self, *, wanted: bool) -> None:
        """Subscribe, or drop the subscription, and find out what is wrong."""
        if not wanted:
            self.destroy()
            return
        if self.topic in self._own():
            self.destroy()
            self.problem = (f'{self.topic} ({self._parameter}) is published by this node: the '
                            'network would measure itself; name the topic of a sensor')
            return
        if self._subscription is not None and time.monotonic() - self._since < SILENT_S:
            return  # messages come, or had no time to come yet
        offered = list(dict.fromkeys(
            item.topic_type for item in self._node.get_publishers_info_by_topic(self.topic)))
        usable = [name for name in offered if name in self._types
                  and self._only in ('', name)]
        kind = usable[0] if usable else self._only
        if kind and kind != self._type:
            self._subscribe(kind)
        self.problem = self._diagnose(offered, usable)

    def _subscribe(self, kind: str) -> None:
        self.destroy()
        profile = qos.sensor_qos()
        events = qos.SubscriptionEventCallbacks(
            incompatible_qos=lambda event: self._on_mismatch(self.topic, event))
        self._subscription = self._node.create_subscription(
            self._types[kind], self.topic, self._take, profile, event_callbacks=events,
            qos_overriding_options=qos.overrides())
        self._type = kind
        self._since = time.monotonic()
        self.qos = {self.topic: profile}

    def _take(self, message: Any) -> None:
        self._since = time.monotonic()
        self._count += 1
        self.problem = ''
        try:
            self._callback(message)
        except Exception:  # a message of somebody else must not end the node
            self._node.get_logger().error(
                f'a message on {self.topic} could not be read:\n{traceback.format_exc()}',
                throttle_duration_sec=5.0)

    def _diagnose(self, offered: list[str], usable: list[str]) -> str:
        wanted = ' or '.join(name.rpartition('/')[2] for name in self._types
                             if self._only in ('', name))
        if not offered:
            others = [f'{name} ({kind.rpartition("/")[2]})'
                      for name, kinds in self._node.get_topic_names_and_types()
                      for kind in kinds if kind in self._types and name != self.topic
                      and name not in self._own() and self._only in ('', kind)]
            there = f'there is {", ".join(others)}' if others else (
                f'there is no topic of type {wanted} at all: is the driver running?')
            return f'nobody publishes {self.topic} ({self._parameter}); {there}'
        if not usable:
            found = ', '.join(name.rpartition('/')[2] for name in offered)
            return f'{self.topic} ({self._parameter}) carries {found}, expected {wanted}'
        quiet = time.monotonic() - self._since
        if quiet < SILENT_S:
            return ''
        return f'{self.topic} has a publisher, but nothing has arrived for {quiet:.0f} s'

    def facts(self) -> dict[str, str]:
        """Return what /diagnostics lists about the topic."""
        return {'topic': self.topic, 'type': self._type.rpartition('/')[2] or 'not known yet',
                'messages': str(self._count)}

    def destroy(self) -> None:
        """Drop the subscription."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        self._subscription = None
        self._type = self.problem = ''
        self.qos = {}

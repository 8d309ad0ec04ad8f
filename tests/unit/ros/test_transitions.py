"""Lifecycle requests that do not fit the state, with the rclpy of every distribution."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip('rclpy')

from depth_node.ros.node import MonoDepthNode
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
import rclpy
from rclpy.impl.implementation_singleton import rclpy_implementation


def test_transition_that_rclpy_raises_about_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Humble's and Jazzy's raise where Kilted's answers; there it ended the process."""
    def older(*_: Any) -> None:
        raise rclpy_implementation.RCLError('Transition is not registered')

    context = rclpy.Context()
    rclpy.init(context=context)
    node = MonoDepthNode(context=context)
    try:
        monkeypatch.setattr(node, '_LifecycleNodeMixin__change_state', older)
        request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_ACTIVATE))
        response = ChangeState.Response(success=True)
        answer = node._service_change_state.callback(request, response)
        assert answer is response
        assert not answer.success
        # the one that raises in the callback itself, as the older ones do
        answer = node._answering(older)(request, ChangeState.Response(success=True))
        assert not answer.success
        assert node._service_change_state.callback.__qualname__.startswith('MonoDepthNode.')
    finally:
        node.close()
        node.destroy_node()
        rclpy.shutdown(context=context)

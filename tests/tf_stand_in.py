"""What tf2_ros offers, as far as depth_node uses it, for machines without it."""

from __future__ import annotations

from types import ModuleType
from typing import Any


class TransformException(Exception):  # noqa: N818  tf2's names
    pass


class LookupException(TransformException):
    pass


class ConnectivityException(TransformException):
    pass


class ExtrapolationException(TransformException):
    pass


class Buffer:
    """Knows direct transforms alone, the newest of each and its time; no interpolation."""

    def __init__(self) -> None:
        self._static: dict[tuple[str, str], Any] = {}
        self._moving: dict[tuple[str, str], Any] = {}

    def set_transform(self, transform: Any, authority: str) -> None:
        del authority
        self._moving[transform.header.frame_id, transform.child_frame_id] = transform

    def set_transform_static(self, transform: Any, authority: str) -> None:
        del authority
        self._static[transform.header.frame_id, transform.child_frame_id] = transform

    def clear(self) -> None:
        self._moving.clear()

    def lookup_transform(self, target_frame: str, source_frame: str, time: Any,
                         timeout: Any) -> Any:
        assert timeout.nanoseconds == 0, 'nobody may wait for TF in the thread of images'
        key = target_frame, source_frame
        if key in self._static:
            return self._static[key]
        if key not in self._moving:
            raise LookupException(f'"{source_frame}" passed to lookupTransform argument '
                                  'source_frame does not exist. ')
        found = self._moving[key]
        newest = 10**9 * found.header.stamp.sec + found.header.stamp.nanosec
        if time.nanoseconds not in (0, newest):
            raise ExtrapolationException(
                f'Lookup would require extrapolation at time {1e-9 * time.nanoseconds:f}, but '
                f'only time {1e-9 * newest:f} is in the buffer')
        return found


class TransformListener:
    def __init__(self, buffer: Buffer, node: Any, *, spin_thread: bool = False) -> None:
        del buffer, node
        assert not spin_thread, 'the node has its own executor'

    def unregister(self) -> None:
        pass


def module() -> ModuleType:
    """Return the stand-in, to be put into sys.modules as tf2_ros."""
    made = ModuleType('tf2_ros')
    for item in (TransformException, LookupException, ConnectivityException,
                 ExtrapolationException, Buffer, TransformListener):
        setattr(made, item.__name__, item)
    return made

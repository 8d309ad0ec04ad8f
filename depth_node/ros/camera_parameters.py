"""The parameters of a node with several cameras: shared ones, and what a camera has of its own.

No ROS in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
import difflib
import re
from typing import Any

from depth_node.ros.parameters import (
    CAMERA_GROUPS,
    ParameterError,
    Parameters,
    Spec,
    Value,
    specs,
    unknown_name,
)

# What stands below the node's name, or is a parameter without a group, beside the groups.
_TAKEN = ('qos_overrides', 'use_sim_time', 'start_type_description_service')


def check_names(cameras: tuple[str, ...]) -> None:
    """Refuse names that cannot be part of topics and parameters.

    Raises:
        ParameterError: with the name and what is expected.
    """
    if cameras == ('',):
        return
    taken = {name.partition('.')[0] for name in specs()} | set(_TAKEN)
    expected = ''
    for index, name in enumerate(cameras):
        if not re.fullmatch('[A-Za-z][A-Za-z0-9_]*', name) or '__' in name:
            expected = ('a letter, then letters, digits and single underscores, as ROS names are '
                        'made')
        elif name in taken:
            expected = 'another name, because parameters begin with this one'
        elif name in cameras[:index]:
            expected = 'each name once'
        if expected:
            raise ParameterError(f'cameras: found {name!r}, expected {expected}; '
                                 'then start the node again', ('cameras',))


def camera_specs(cameras: tuple[str, ...]) -> dict[str, Spec]:
    """Return the parameters that named cameras have of their own, by full name."""
    return {
        f'{camera}.{name}': replace(
            spec, name=f'{camera}.{name}',
            text=f'{name} for the camera {camera} alone; while it is not set, {name} counts. '
            f'{spec.text}')
        for camera in cameras if camera
        for name, spec in specs().items() if name.rpartition('.')[0] in CAMERA_GROUPS}


class ParameterSet:
    """All parameters at one moment; not changed once made.

    Attributes:
        shared: those without a camera's name.
        specs: every parameter by its full name.
    """

    def __init__(self, shared: Parameters | None = None,
                 own: Mapping[str, Value] | None = None) -> None:
        """Put the parameters together.

        Args:
            shared: the defaults when None.
            own: values of single cameras by their full names, such as `front.filter.far_m`.

        Raises:
            ParameterError: unusable names of cameras, or values that contradict each other.
        """
        self.shared = shared or Parameters()
        self.own = dict(own or {})
        check_names(self.shared.cameras)
        self.specs = {**specs(), **camera_specs(self.shared.cameras)}
        self._of = {camera: self._merged(camera) for camera in self.shared.cameras}

    def of(self, camera: str) -> Parameters:
        """Return the parameters in force for a camera, '' being the unnamed one."""
        return self._of[camera]

    def value(self, name: str) -> Value:
        """Return the value in force of a parameter, by its full name."""
        camera, _, rest = name.partition('.')
        return self._of[camera].value(rest) if camera in self._of else self.shared.value(name)

    def changed(self, changes: Mapping[str, Any]) -> ParameterSet:
        """Return a copy with parameters replaced by their full names.

        Raises:
            ParameterError: unknown name, unusable value, or values that contradict each other.
        """
        shared, own = {}, dict(self.own)
        for name, value in changes.items():
            if name not in self.specs:
                raise ParameterError(self.unknown_name(name))
            if name in specs():
                shared[name] = value
                continue
            if value is None:
                base = name.partition('.')[2]
                raise ParameterError(
                    f'{name}: it cannot be taken back while the node runs; set it to the value '
                    f'of {base}, {self.shared.value(base)}, or start the node without it')
            own[name] = self.specs[name].coerce(value)
        return ParameterSet(self.shared.changed(shared), own)

    def unknown_name(self, name: str) -> str:
        """Return what to say about a parameter that does not exist."""
        camera, _, rest = name.partition('.')
        if rest not in specs() or rest.rpartition('.')[0] not in CAMERA_GROUPS:
            return unknown_name(name, self.specs)
        names = [item for item in self.shared.cameras if item]
        near = difflib.get_close_matches(camera, names, n=1)
        return (f'there is no parameter {name!r}, because `cameras` '
                + (f'has {", ".join(names)} only' if names else 'names no camera')
                + (f'; did you mean {f"{near[0]}.{rest}"!r}?' if near else ''))

    def _merged(self, camera: str) -> Parameters:
        prefix = f'{camera}.'
        mine = {name.removeprefix(prefix): value for name, value in self.own.items()
                if name.startswith(prefix)}
        try:
            return self.shared.changed(mine)
        except ParameterError as error:
            raise ParameterError(f'camera {camera}: {error}', tuple(
                prefix + name for name in error.names if name in mine)) from None

"""Declares `parameters.py` on a node, and keeps one consistent `Parameters` value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from depth_node.ros.parameters import (
    CONFIGURE,
    NODE_NAME,
    START,
    ParameterError,
    Parameters,
    Spec,
    specs,
    unknown_name,
)
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter


def descriptor(spec: Spec) -> ParameterDescriptor:
    """Return what `ros2 param describe` and rqt show about a parameter.

    Typing is dynamic so that a YAML author may write 10 for 10.0; `Spec.coerce` checks instead,
    and names what it expected.
    """
    result = ParameterDescriptor()
    result.name = spec.name
    result.description = spec.text
    result.additional_constraints = spec.constraint
    result.read_only = spec.when == START
    result.dynamic_typing = spec.kind in ('float', 'str')
    if spec.low is not None and spec.high is not None:
        if spec.kind == 'int':
            result.integer_range = [
                IntegerRange(from_value=int(spec.low), to_value=int(spec.high), step=0)]
        elif spec.kind == 'float':
            result.floating_point_range = [FloatingPointRange(
                from_value=float(spec.low), to_value=float(spec.high), step=0.0)]
    return result


class ParameterServer:
    """Declares all parameters, refuses bad changes with a reason, and holds the current value.

    `current` is replaced as a whole, so a thread that reads it once sees one consistent state.
    A value given at start (file or command line) that does not fit is not fatal: the default is
    declared, and the reason stays in `problems` until the parameter is set to a usable value.

    Attributes:
        current: the parameters in force.
        problems: name of a parameter -> why its value from the start cannot be used.
        warnings: remarks about the values given at start (names that do not exist).
    """

    def __init__(self, node: Node, *, configured: Callable[[], bool],
                 check: Callable[[Parameters], None]) -> None:
        """Declare everything.

        Args:
            node: where to declare.
            configured: True while parameters used by configure are in use.
            check: raises ValueError where the rest of the node cannot take these parameters.
        """
        self._node = node
        self._configured = configured
        self._check = check
        self.current = Parameters()
        self.problems: dict[str, str] = {}
        self.warnings: list[str] = []
        given = dict(getattr(node, '_parameter_overrides', {}))
        known = specs()
        usable: dict[str, Any] = {}
        for name, spec in known.items():
            if name not in given:
                continue
            try:
                usable[name] = spec.coerce(given[name].value)
            except ParameterError as error:
                self.problems[name] = str(error)
        try:
            self.current = self.current.changed(usable)
        except ParameterError as error:  # each value is fine, but not together
            self.problems[str(error).split(' ', 1)[0]] = str(error)
            usable = {name: value for name, value in usable.items()
                      if name not in ('filter.near_m', 'filter.far_m', 'depth.color_near_m',
                                      'depth.color_far_m', 'scale.low', 'scale.high')}
            self.current = self.current.changed(usable)
        for name, spec in known.items():
            value = self.current.value(name)
            node.declare_parameter(name, list(value) if isinstance(value, tuple) else value,
                                   descriptor(spec), ignore_override=True)
        for name in given:
            if name not in known and not name.startswith('qos_overrides.') and not (
                    node.has_parameter(name)):
                self.warnings.append(f'parameter ignored: {unknown_name(name)}; all parameters: '
                                     f'ros2 param list /{NODE_NAME}')
        node.add_on_set_parameters_callback(self._on_set)

    def _on_set(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        known = specs()
        changes = {item.name: item.value for item in parameters if item.name in known}
        if not changes:
            return SetParametersResult(successful=True)
        try:
            if self._configured():
                late = [name for name in changes if known[name].when == CONFIGURE
                        and known[name].coerce(changes[name]) != self.current.value(name)]
                if late:
                    raise ParameterError(
                        f'{", ".join(late)}: used by configure only; first: ros2 lifecycle set '
                        f'{self._node.get_fully_qualified_name()} cleanup (deactivate before, '
                        'if active)')
            updated = self.current.changed(changes)
            self._check(updated)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self.current = updated
        for name in changes:
            self.problems.pop(name, None)
        return SetParametersResult(successful=True)

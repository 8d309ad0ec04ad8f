"""Declares `parameters.py` on a node, and keeps one consistent `Parameters` value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from depth_node.ros.camera_parameters import ParameterSet
from depth_node.ros.parameters import (
    CONFIGURE,
    NODE_NAME,
    START,
    ParameterError,
    Parameters,
    Spec,
    specs,
)
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter


def descriptor(spec: Spec, *, may_be_unset: bool = False) -> ParameterDescriptor:
    """Return what `ros2 param describe` and rqt show about a parameter.

    Typing is dynamic so that a YAML author may write 10 for 10.0, and where a parameter may be
    not set; `Spec.coerce` checks instead, and names what it expected.
    """
    result = ParameterDescriptor()
    result.name = spec.name
    result.description = spec.text
    result.additional_constraints = spec.constraint
    result.read_only = spec.when == START
    result.dynamic_typing = may_be_unset or spec.kind in ('float', 'str')
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

    The current value is replaced as a whole, so a thread that reads it once sees one consistent
    state.  A value given at start (file or command line) that does not fit is not fatal: the
    default is declared, and the reason stays in `problems` until the parameter is set to a usable
    value.

    A parameter of one camera is declared without a value where none was given: the one without
    the camera's name counts then.

    Attributes:
        problems: names of parameters -> why their values from the start cannot be used.
        warnings: remarks about the values given at start (names that do not exist).
    """

    def __init__(self, node: Node, *, configured: Callable[[], bool],
                 check: Callable[[Parameters], None]) -> None:
        """Declare everything.

        Args:
            node: where to declare.
            configured: True while parameters used by configure are in use.
            check: raises ValueError where the rest of the node cannot take these parameters for
                a camera.
        """
        self._node = node
        self._configured = configured
        self._check = check
        self._all = ParameterSet()
        self.problems: dict[tuple[str, ...], str] = {}
        self.warnings: list[str] = []
        given = {name: item.value for name, item in
                 getattr(node, '_parameter_overrides', {}).items()}
        self._take(specs(), given)  # the names of the cameras among them
        # `ros2 param dump` writes null for a parameter without a value
        of_cameras = {name: spec for name, spec in self._all.specs.items() if name not in specs()}
        self._take(of_cameras, {name: value for name, value in given.items()
                                if value not in (None, 'null')})
        for name, spec in self._all.specs.items():
            unset = name in of_cameras and name not in self._all.own
            value = None if unset else self._all.value(name)
            node.declare_parameter(
                name, list(value) if isinstance(value, tuple) else value,
                descriptor(spec, may_be_unset=name in of_cameras), ignore_override=True)
        for name in given:
            if name not in self._all.specs and not name.startswith('qos_overrides.') and not (
                    node.has_parameter(name)):
                self.warnings.append(
                    f'parameter ignored: {self._all.unknown_name(name)}; all parameters: '
                    f'ros2 param list /{NODE_NAME}')
        node.add_on_set_parameters_callback(self._on_set)

    @property
    def current(self) -> Parameters:
        """The parameters in force that no camera has for itself."""
        return self._all.shared

    def of(self, camera: str) -> Parameters:
        """Return the parameters in force for a camera."""
        return self._all.of(camera)

    def check(self, wanted: ParameterSet | None = None) -> None:
        """Ask the rest of the node about the parameters of each camera.

        Raises:
            ValueError: naming the camera.
        """
        wanted = wanted or self._all
        for camera in wanted.shared.cameras:
            try:
                self._check(wanted.of(camera))
            except ValueError as error:
                raise ParameterError(f'camera {camera}: {error}' if camera else str(error)
                                     ) from error

    def _take(self, known: Mapping[str, Spec], given: Mapping[str, Any]) -> None:
        """Take over what is usable of the values given at start, and note what is not."""
        usable: dict[str, Any] = {}
        for name, spec in known.items():
            if name not in given:
                continue
            try:
                usable[name] = spec.coerce(given[name])
            except ParameterError as error:
                self.problems[name,] = str(error)
        while usable:
            try:
                self._all = self._all.changed(usable)
            except ParameterError as error:  # each value is fine, but not together
                self.problems[error.names] = str(error)
                for name in error.names or tuple(usable):
                    usable.pop(name, None)
            else:
                return

    def _on_set(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        known = self._all.specs
        changes = {item.name: item.value for item in parameters if item.name in known}
        if not changes:
            return SetParametersResult(successful=True)
        try:
            if self._configured():
                late = [name for name in changes if known[name].when == CONFIGURE
                        and known[name].coerce(changes[name]) != self._all.value(name)]
                if late:
                    raise ParameterError(
                        f'{", ".join(late)}: used by configure only; first: ros2 lifecycle set '
                        f'{self._node.get_fully_qualified_name()} cleanup (deactivate before, '
                        'if active)')
            updated = self._all.changed(changes)
            self.check(updated)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._all = updated
        self.problems = {names: text for names, text in self.problems.items()
                         if not set(names) & set(changes)}
        return SetParametersResult(successful=True)

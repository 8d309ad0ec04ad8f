"""One graph for many picture sizes: the step that they come in, and a fixed graph made free.

A network of convolutions halves and doubles its maps. Where both sides of the picture are
multiples of the largest shrinking factor nothing is rounded, and every map has a fixed share of
the picture's size. Then a graph that was exported for one size holds for all: sizes in it become
factors, and no node asks for a shape at run time, which is also what TensorRT optimises best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from depth_node.training.networks.base import DepthNetwork
    import onnx

STEPS = (8, 16, 32, 64, 128)
# Height and width of the traced graph, in steps: no map is square, and none is 1 pixel high.
TRACED_STEPS = (2, 3)
OTHER_STEPS = (3, 5)


class NotDynamicError(ValueError):
    """A network, or a graph, is for one size alone."""


@dataclass(frozen=True)
class Sizes:
    """Which input sizes a graph is for.

    Attributes:
        step: height and width are multiples of it.
        nominal_hw: the size that it was trained at, in whole steps.
        min_hw: smallest size.
        max_hw: largest size.
    """

    step: int
    nominal_hw: tuple[int, int]
    min_hw: tuple[int, int]
    max_hw: tuple[int, int]

    @property
    def traced_hw(self) -> tuple[int, int]:
        """Return the size that the graph is exported at before it is made free."""
        return TRACED_STEPS[0] * self.step, TRACED_STEPS[1] * self.step

    def samples(self) -> tuple[tuple[int, int], ...]:
        """Return the sizes at which a graph is compared with torch; most are of another aspect."""
        (low_h, low_w), (high_h, high_w) = self.min_hw, self.max_hw
        wide = low_h, min(high_w, self.nominal_hw[1] + self.step)
        high = min(high_h, self.nominal_hw[0] + self.step), low_w
        return tuple(dict.fromkeys((self.nominal_hw, wide, high)))


def sizes_of(
    network: DepthNetwork,
    min_hw: tuple[int, int] | None = None,
    max_hw: tuple[int, int] | None = None,
) -> Sizes:
    """Return the sizes that a network can be exported for.

    Args:
        network: in evaluation mode.
        min_hw: smallest size; None is half the trained one.
        max_hw: largest size; None is twice the trained one.

    Raises:
        NotDynamicError: it takes one size alone, or the limits leave no size.
    """
    step = size_step(network)
    least = TRACED_STEPS[0] * step
    height, width = network.size_hw

    def down(size_hw: tuple[float, float]) -> tuple[int, int]:
        tall, wide = (max(least, int(side // step) * step) for side in size_hw)
        return tall, wide

    for name, limit in (('smallest', min_hw), ('largest', max_hw)):
        if limit is not None and any(side % step or side < least for side in limit):
            raise NotDynamicError(
                f'{name} size {limit[1]}x{limit[0]}: this network takes sides of {least} and '
                f'more in steps of {step}'
            )
    low = min_hw or down((height / 2, width / 2))
    high = max_hw or down((height * 2, width * 2))
    if low[0] > high[0] or low[1] > high[1]:
        raise NotDynamicError(
            f'smallest size {low[1]}x{low[0]}, largest {high[1]}x{high[0]}: no size lies between'
        )
    nominal = down((height + step / 2, width + step / 2))
    nominal = (
        min(max(nominal[0], low[0]), high[0]), min(max(nominal[1], low[1]), high[1]),
    )  # fmt: skip
    return Sizes(step, nominal, low, high)


def size_step(network: DepthNetwork) -> int:
    """Return the step of the sizes at which every map of a network has a fixed share of them.

    Found by running it: at two sizes in that step all maps must grow as the picture does.

    Raises:
        NotDynamicError: with the reason, where there is none up to the largest of STEPS.
    """
    reason = ''
    for step in STEPS:
        try:
            if _grows_evenly(network, step):
                return step
            reason = 'its maps do not grow as the picture does'
        except RuntimeError as error:
            reason = f'torch says: {str(error).splitlines()[0]}'
    linear = [name for name, m in network.named_modules() if isinstance(m, torch.nn.Linear)]
    if linear:
        reason = f'it has fully connected layers ({", ".join(linear[:2])}); {reason}'
    height, width = network.size_hw
    raise NotDynamicError(
        f'{type(network).__name__} takes {width}x{height} alone: {reason}. Export it without '
        '--dynamic, or train it at the size that you need'
    )


class _Shapes(TorchDispatchMode):
    """Notes the shapes of all maps that are computed while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # a border of fixed width is no map; the convolution behind it takes it away
        if isinstance(result, torch.Tensor) and result.ndim >= 4 and 'pad' not in str(func):
            self.seen.append(tuple(result.shape))
        return result


def _grows_evenly(network: DepthNetwork, step: int) -> bool:
    found = []
    for steps in (TRACED_STEPS, OTHER_STEPS):
        with torch.no_grad(), _Shapes() as shapes:
            network(torch.zeros(1, 3, steps[0] * step, steps[1] * step))
        found.append(shapes.seen)
    small, large = found
    return len(small) == len(large) and all(map(_same_share, small, large))


def _same_share(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Tell whether a map's shape grows as the picture's, or not at all."""
    if small == large:
        return True
    return (
        small[:-2] == large[:-2]
        and small[-2] * OTHER_STEPS[0] == large[-2] * TRACED_STEPS[0]
        and small[-1] * OTHER_STEPS[1] == large[-1] * TRACED_STEPS[1]
    )


def loosen(model: onnx.ModelProto) -> None:
    """Make height and width of a graph free, in place.

    Sizes of Resize become factors, pooling over a whole map becomes global pooling, and channels
    that are interleaved through a reshape are joined without one.

    Args:
        model: of `export_onnx`, for one size at which nothing is rounded (`size_step`), not
            square and with no map of one pixel.

    Raises:
        NotDynamicError: a node that keeps its size.
    """
    from onnx import numpy_helper, shape_inference

    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {
        info.name: tuple(side.dim_value for side in info.type.tensor_type.shape.dim)
        for info in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    graph = model.graph
    constants = {
        item.name: numpy_helper.to_array(item) for item in graph.initializer
    }
    _join_interleaved(model)
    for node in graph.node:
        if node.op_type == 'Resize':
            _resize_by_factor(model, node, shapes)
        elif node.op_type in ('AveragePool', 'MaxPool'):
            kernel = next(tuple(a.ints) for a in node.attribute if a.name == 'kernel_shape')
            if kernel == shapes[node.input[0]][2:]:
                node.op_type = f'Global{node.op_type}'
                del node.attribute[:]
        elif node.op_type in ('Reshape', 'Expand') and node.input[1] in constants:
            target = constants[node.input[1]]
            if len(target) >= 4 and tuple(target) == shapes[node.output[0]]:
                raise NotDynamicError(
                    f'{node.name}: {node.op_type} to the fixed shape {list(target)}'
                )
    image = graph.input[0]
    shape = image.type.tensor_type.shape.dim
    shape[1].dim_param, shape[2].dim_param = 'height', 'width'
    for result in graph.output:
        same = shapes[result.name][2:] == shapes[image.name][1:3]
        ending = '' if same else f'_of_{result.name}'
        shape = result.type.tensor_type.shape.dim
        shape[2].dim_param, shape[3].dim_param = f'height{ending}', f'width{ending}'
    del graph.value_info[:]
    used = {name for node in graph.node for name in node.input}
    for item in [item for item in graph.initializer if item.name not in used]:
        graph.initializer.remove(item)


def _resize_by_factor(
    model: onnx.ModelProto, node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]
) -> None:
    """Give a Resize the share between its sizes in place of its size."""
    import numpy as np
    from onnx import numpy_helper

    if len(node.input) < 4 or not node.input[3]:
        return  # it has factors already
    before, after = shapes[node.input[0]], shapes[node.output[0]]
    factors = np.array([b / a for a, b in zip(before, after, strict=True)], np.float32)
    # 4 bytes must hold the factor to a share that no size can make a pixel of
    if not all(float(f) * a == b for f, a, b in zip(factors, before, after, strict=True)):
        raise NotDynamicError(f'{node.name}: Resize of {before[2:]} to {after[2:]}')
    name = f'{node.output[0]}.factors'
    model.graph.initializer.append(numpy_helper.from_array(factors, name))
    del node.input[2:]
    node.input.append(name)


def _join_interleaved(model: onnx.ModelProto) -> None:
    """Replace Unsqueeze, Concat, Reshape, DepthToSpace (CRD) by Concat, DepthToSpace (DCR).

    torch.stack along a new axis behind the channels and a pixel shuffle: the maps of one channel
    lie side by side. The other order of DepthToSpace takes them one after the other, so that no
    reshape has to name the size.
    """
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    users: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    for last in graph.node:
        mode = next((a for a in last.attribute if a.name == 'mode'), None)
        if last.op_type != 'DepthToSpace' or mode is None or mode.s != b'CRD':
            continue
        reshape = makers.get(last.input[0])
        concat = makers.get(reshape.input[0]) if reshape is not None else None
        if (
            reshape is None or concat is None or reshape.op_type != 'Reshape'
            or concat.op_type != 'Concat' or concat.attribute[0].i != 2
            or users[last.input[0]] != 1 or users[reshape.input[0]] != 1
        ):  # fmt: skip
            continue
        parts = [makers.get(name) for name in concat.input]
        block = next(a.i for a in last.attribute if a.name == 'blocksize')
        if len(parts) != block**2 or any(p is None or p.op_type != 'Unsqueeze' for p in parts):
            continue
        concat.input[:] = [part.input[0] for part in parts if part is not None]
        concat.attribute[0].i = 1
        last.input[0] = concat.output[0]
        mode.s = b'DCR'
        graph.node.remove(reshape)
    _drop_unused(model)


def _drop_unused(model: onnx.ModelProto) -> None:
    graph = model.graph
    results = {output.name for output in graph.output}
    while True:
        used = {name for node in graph.node for name in node.input} | results
        idle = [node for node in graph.node if not used.intersection(node.output)]
        if not idle:
            return
        for node in idle:
            graph.node.remove(node)

"""Puts the resizing of a camera's pictures into the network's own graph.

The result takes the whole picture of one camera, so that the GPU resizes and the CPU copies. cv2's
INTER_AREA and INTER_LINEAR, which `ResizePlan` uses on the way in, are linear and separable: a
matrix for the rows and one for the columns compute the same, in operators that every TensorRT has;
whole blocks, where `ResizePlan` averages them first, are pooled.

The map stays as the network makes it: `ResizePlan.back` brings it to the picture after the
filters, which work on the map's own grid. Results that stay on the GPU can be had at the picture's
size (`upsample`): bilinear as `ResizePlan.back`, of depth, with holes where the network gave no
usable value.

Needs the extra `export` without torch: onnx and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
import math
from pathlib import Path
import tempfile
from typing import TYPE_CHECKING, Any, Final

from depth_node.backends import BackendError, check_batch, open_backend, output_names
from depth_node.model_card import (
    METADATA_KEY,
    CheckSpec,
    FileSpec,
    InputSpec,
    ModelCard,
    OutputSpec,
    check_input,
    file_sha256,
    statistics_of,
)
from depth_node.postprocess import as_map, to_depth
from depth_node.preprocess import ResizePlan
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET: Final = 13  # Resize without dummy inputs
CHECK_SEED: Final = 7
_PARITY_SEEDS: Final = (1, 2, 3)
_TOLERANCE: Final = {'fp32': 0.002, 'fp16': 0.01, 'bf16': 0.03, 'int8': 0.05}
# Largest mean difference between the two, as a share of depth. A picture that rounds to another
# grey level in some pixels moves FP32 by less than a tenth of it; INT8 rounds again.
LARGEST_MEAN_REL: Final = {'fp32': 0.005, 'fp16': 0.005, 'int8': 0.02, 'int8_trt': 0.02}


class FuseError(ValueError):
    """A model into which resizing cannot be put."""


@dataclass(frozen=True)
class Parity:
    """How far the new graph is from the old one with resizing outside, on seeded pictures.

    Attributes:
        mean_rel: mean difference as a share of depth, where both have one.
        p99_rel: 99 % of the pixels differ by less.
        holes: share of the pixels where one has a depth and the other has none.
    """

    mean_rel: float
    p99_rel: float
    holes: float


def fuse_resize(
    card: ModelCard, size_hw: tuple[int, int], out: Path, *, upsample: bool = False,
    name: str | None = None, command: str = '',
) -> tuple[ModelCard, dict[str, Parity]]:
    """Write every file of a card anew for pictures of one size, and a card for them.

    `canonical_depth` gets the focal length of the picture's grid. With `upsample`, `log_depth` and
    `inv_depth` become `depth`, because depth is what is resized; the relative kinds stay, and a
    shift of inverse depth that is applied to them later comes after resizing, not before.

    Args:
        card: the model.
        size_hw: of the camera's pictures.
        out: the FP32 file to write; the others and the card (<stem>.yaml) lie beside it.
        upsample: return maps of the picture's size too.
        name: of the new card; None: the file's stem.
        command: what the user called, for the provenance.

    Returns:
        The new card, which is saved, and the parity of each precision.

    Raises:
        FuseError: the graph is not one that can be joined, there is nothing to resize, or the new
            graph computes something else; nothing is written then.
        CardError: a file of the card is missing or changed.
    """
    import onnx

    if out.suffix != '.onnx':
        raise FuseError(f'{out}: a name that ends in .onnx is expected')
    if not all(8 <= side <= 8192 for side in size_hw):
        raise FuseError(f'pictures of {size_hw[1]}x{size_hw[0]}: sides of 8 to 8192 are expected')
    plan = ResizePlan(card.input, size_hw)
    new = _card(card, plan, out, name or out.stem, command, upsample)
    originals = {key: card.verify_file(key) for key in card.precisions}
    picture = check_input(CHECK_SEED, size_hw)[0]
    sizes = {key: as_map(value).shape for key, value in
             _runner(originals['fp32'], card)(plan.to_input(picture)).items()}
    if plan.network_hw == size_hw and card.input == replace(
            new.input, resize=card.input.resize) and (
                not upsample or set(sizes.values()) == {size_hw}):
        raise FuseError(f'{card.path}: for pictures of {size_hw[1]}x{size_hw[0]} nothing is '
                        'resized')
    if not upsample and plan.window[2:] != plan.network_hw and set(sizes.values()) != {
            plan.network_hw}:
        raise FuseError(f'{card.path}: its maps have another size than its input, so that padding '
                        'cannot be cut off at a pixel: let the graph resize them as well '
                        '(--upsample)')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.stem}.') as place:
            parity, written = {}, {}
            for key, source in originals.items():
                model = _fused(onnx.load(str(source)), card, plan, sizes, source, upsample)
                path = Path(place) / new.precisions[key].path.name
                onnx.save(model, str(path))
                parity[key] = _parity(card, source, new, path, key)
                if key == 'fp32':
                    new = replace(new, check=_check(card, new, path))
                written[key] = model, path
            new = replace(new, provenance={**new.provenance, 'parity': {
                key: {'mean_rel': _rounded(value.mean_rel), 'p99_rel': _rounded(value.p99_rel),
                      'holes': _rounded(value.holes)} for key, value in parity.items()}})
            files = {}
            for key, (model, path) in written.items():
                model.metadata_props.add(key=METADATA_KEY, value=new.embedded_text(key))
                onnx.save(model, str(path))
                target = new.precisions[key].path
                files[key] = FileSpec(target, file_sha256(path))
            _open_once(replace(new, precisions={
                'fp32': replace(files['fp32'], path=written['fp32'][1])}))
            new = replace(new, precisions=files)
            for key, (_, path) in written.items():
                path.replace(files[key].path)
    except OSError as error:
        raise FuseError(f'{out}: cannot be written: {error.strerror or error}') from error
    new.save()
    return new, parity


def resize_matrix(size: int, source: int, *, area: bool, shrinks: bool = True) -> NDArray[Any]:
    """Return the (size, source) float32 matrix by which cv2.resize resamples one axis.

    Args:
        size: pixels of the result.
        source: pixels of the original.
        area: INTER_AREA: each result is the mean of the piece of the original that it covers.
            Otherwise INTER_LINEAR: between the two nearest pixel centres, repeated at the border.
        shrinks: with `area`, whether neither axis of the picture grows. Where one does, cv2 takes
            for both a linear form that keeps pixel edges in place.
    """
    growth = size / source  # and from it the step: in cv2's order, for the same rounding
    step = 1 / growth
    rows, columns = np.arange(size)[:, None], np.arange(source)[None]
    if area and shrinks:
        covered = (np.minimum((rows + 1) * step, columns + 1)
                   - np.maximum(rows * step, columns)).clip(0, None)
        return (covered / covered.sum(1, keepdims=True)).astype(np.float32)
    if area:
        first = np.floor(rows * step)
        share = ((rows + 1) - (first + 1) * growth).astype(np.float32)
        share = np.where(share <= 0, 0.0, share - np.floor(share))
    else:
        centre = (rows + 0.5) * step - 0.5
        first = np.floor(centre)
        share = centre - first
    matrix = np.zeros((size, source))
    index = np.arange(size)
    for column, weight in ((first, 1 - share), (first + 1, share)):
        np.add.at(matrix, (index, column[:, 0].clip(0, source - 1).astype(int)), weight[:, 0])
    return matrix.astype(np.float32)


# --- the card


def _card(
    card: ModelCard, plan: ResizePlan, out: Path, name: str, command: str, upsample: bool
) -> ModelCard:
    """Describe the files that are to be written; hashes and statistics come later."""
    output = card.output
    if upsample and output.kind in ('log_depth', 'inv_depth'):
        output = replace(output, kind='depth')
    if output.canonical_focal_px is not None:
        height, width = plan.window[2:]
        share = math.sqrt(height / plan.size_hw[0] * (width / plan.size_hw[1]))
        output = replace(output, canonical_focal_px=output.canonical_focal_px / share)
    files = {
        key: FileSpec((out if key == 'fp32' else out.with_suffix(f'.{key}.onnx')).absolute(), '')
        for key in card.precisions}
    return ModelCard(
        name=name, path=out.with_suffix('.yaml').absolute(), licence=card.licence,
        input=InputSpec(card.input.name, 'uint8_nhwc', size_hw=plan.size_hw),
        output=output, precisions=files,
        # the measurements were made of another graph and are left with it
        provenance={'command': command or 'depth_node.export.fuse.fuse_resize', 'resize_of': {
            'name': card.name, 'network_hw': list(plan.network_hw), 'resize': card.input.resize,
            'kind': card.output.kind, 'upsample': upsample,
            'sha256': {key: spec.sha256 for key, spec in card.precisions.items()},
            'provenance': card.provenance}})


def _check(card: ModelCard, new: ModelCard, path: Path) -> CheckSpec:
    assert new.input.size_hw is not None
    seed = card.check.seed if card.check else CHECK_SEED
    batch = check_batch(new.input, seed, new.input.size_hw)
    outputs = _runner(path, new)(batch)
    mean, std, percentiles = statistics_of(outputs[new.output.name])
    sure = new.output.confidence
    return CheckSpec(
        seed, new.input.size_hw, round(mean, 6), round(std, 6),
        {rank: round(value, 6) for rank, value in percentiles.items()},
        dict(card.check.tolerance if card.check else _TOLERANCE),
        None if sure is None else round(float(outputs[sure].mean()), 6))


def _rounded(value: float) -> float:
    return float(f'{value:.3g}')


# --- the proof


def _parity(card: ModelCard, source: Path, new: ModelCard, path: Path, key: str) -> Parity:
    """Compare depth of the picture's size by both, as the pipeline computes it.

    Raises:
        FuseError: they differ by more than `LARGEST_MEAN_REL`.
    """
    size_hw = new.input.size_hw
    assert size_hw is not None
    outside, inside = ResizePlan(card.input, size_hw), ResizePlan(new.input, size_hw)
    by_old, by_new = _runner(source, card, key), _runner(path, new, key)
    differences, holes = [], 0
    for seed in _PARITY_SEEDS:
        picture = check_input(seed, size_hw)[0]
        wanted = _depth(by_old(outside.to_input(picture)), card, outside)
        found = _depth(by_new(inside.to_input(picture)), new, inside)
        known = np.isfinite(wanted) & np.isfinite(found)
        holes += int(np.count_nonzero(np.isfinite(wanted) != np.isfinite(found)))
        differences.append(np.abs(found[known] / wanted[known] - 1))
    every = np.concatenate(differences)
    total = len(_PARITY_SEEDS) * size_hw[0] * size_hw[1]
    if not every.size:
        raise FuseError(f'{source}: no pixel of the reference pictures gets a depth; is the '
                        "output's kind right?")
    parity = Parity(float(every.mean()), float(np.percentile(every, 99)), holes / total)
    largest = LARGEST_MEAN_REL[key]
    if not (parity.mean_rel <= largest and parity.holes <= largest):
        raise FuseError(
            f'{source}: with resizing inside, depth moves by {parity.mean_rel:.2%} on average '
            f'and {parity.holes:.2%} of the pixels change between known and unknown, at most '
            f'{largest:.1%} are allowed for {key}; run it without')
    return parity


def _open_once(card: ModelCard) -> None:
    """Let a backend hold the card to the file, as it will when the model is used.

    Raises:
        FuseError: it does not open.
    """
    try:
        open_backend(card, 'onnxruntime', 'fp32').close()
    except BackendError as error:
        raise FuseError(f'the new model does not open: {error}; where the aspect is the reason, '
                        'let the graph resize the map as well (--upsample)') from error


def _depth(
    outputs: dict[str, NDArray[Any]], card: ModelCard, plan: ResizePlan
) -> NDArray[np.float32]:
    from depth_node.camera import Camera

    camera = plan.network_camera(Camera.from_fov(plan.size_hw, 60.0))
    return plan.back(to_depth(as_map(outputs[card.output.name]), card.output, camera))


def _runner(
    path: Path, card: ModelCard, key: str = 'fp32'
) -> Callable[[NDArray[Any]], dict[str, NDArray[Any]]]:
    """Open a file by ONNX Runtime; what is for TensorRT as it is written (see `file_runner`)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if key == 'int8_trt':
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider'])
    names = list(output_names(card))
    return lambda batch: dict(zip(
        names, session.run(names, {card.input.name: batch}), strict=True))


# --- the graph


class _Nodes:
    """Nodes and constants with names of their own."""

    def __init__(self, taken: set[str]) -> None:
        self._prefix = 'resize'
        while any(name.startswith(self._prefix + '/') for name in taken):
            self._prefix += '_'
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._count = 0

    def name(self, what: str) -> str:
        self._count += 1
        return f'{self._prefix}/{what}_{self._count}'

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        from onnx import numpy_helper

        name = self.name('constant')
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, operator: str, *inputs: str, out: str = '', **attributes: Any) -> str:
        """Append a node; returns its output's name."""
        from onnx import helper

        name = self.name(operator.lower())
        self.nodes.append(
            helper.make_node(operator, list(inputs), [out or name], name=name, **attributes))
        return out or name


def _fused(
    model: onnx.ModelProto, card: ModelCard, plan: ResizePlan,
    sizes: dict[str, tuple[int, ...]], source: Path, upsample: bool,
) -> onnx.ModelProto:
    """Join the resizing to a graph, which is changed."""
    import onnx
    from onnx import TensorProto, helper

    graph = model.graph
    opset = next((o.version for o in model.opset_import if o.domain in ('', 'ai.onnx')), 0)
    if opset < OLDEST_OPSET:
        raise FuseError(f'{source}: opset {opset}, {OLDEST_OPSET} or later is expected; export '
                        'the network again')
    name = card.input.name
    if [each.name for each in graph.input if each.name not in
            {constant.name for constant in graph.initializer}] != [name]:
        raise FuseError(f'{source}: its inputs are not {name!r} alone')
    outer = {name, *output_names(card)}
    if any(outer & _names(attribute.g) for node in graph.node for attribute in node.attribute
           if attribute.type == onnx.AttributeProto.GRAPH):
        raise FuseError(f'{source}: a nested graph (If, Loop) uses its input or output; export '
                        'the network without')
    nodes = _Nodes(_names(graph))
    _way_in(nodes, graph, card.input, plan, source)
    before, nodes.nodes = nodes.nodes, []
    maps = {}
    for each in output_names(card):
        raw = _taken(nodes, graph, each, sizes[each])
        if upsample:
            _way_out(nodes, raw, each, card.output, plan, sizes[each])
            maps[each] = plan.size_hw
        else:
            maps[each] = _unpadded(nodes, raw, each, plan, sizes[each])
    joined = [*before, *graph.node, *nodes.nodes]
    del graph.node[:], graph.input[:], graph.output[:]
    # of the old sizes, and free ones where the network took several
    del graph.value_info[:]
    graph.node.extend(joined)
    graph.initializer.extend(nodes.constants)
    graph.input.append(helper.make_tensor_value_info(
        name, TensorProto.UINT8, [1, *plan.size_hw, 3]))
    for each in output_names(card):
        graph.output.append(helper.make_tensor_value_info(
            each, TensorProto.FLOAT, [1, 1, *maps[each]]))
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's errors have no common base
        first = (str(error).strip().splitlines() or ['no message'])[0]
        raise FuseError(f'{source}: resizing does not fit to it: {first}') from error
    return model


def _way_in(
    nodes: _Nodes, graph: onnx.GraphProto, spec: InputSpec, plan: ResizePlan, source: Path,
) -> None:
    """Compute what `ResizePlan.to_input` gives the network."""
    from onnx import TensorProto

    height, width = plan.size_hw
    v0, u0, rows, columns = plan.window
    net_h, net_w = plan.network_hw
    # uint8 goes into Cast alone: TensorRT takes it nowhere else
    last = nodes.add('Cast', spec.name, to=TensorProto.FLOAT)
    nchw = plan.blocks is not None
    if plan.blocks is not None:
        last = nodes.add('Transpose', last, perm=[0, 3, 1, 2])
        last = nodes.add('AveragePool', last, kernel_shape=plan.blocks, strides=plan.blocks)
        last = _whole(nodes, last, halved=plan.blocks == (2, 2), averaged=True)
        height, width = height // plan.blocks[0], width // plan.blocks[1]
    # as ResizePlan chooses
    area = plan.blocks is None and rows * columns < height * width
    shrinks = rows <= height and columns <= width
    resized = (rows, columns) != (height, width)
    if resized:
        matrix = np.zeros((net_h, height), np.float32)
        matrix[v0:v0 + rows] = resize_matrix(rows, height, area=area, shrinks=shrinks)
        if nchw:
            last = nodes.add('MatMul', nodes.constant(matrix), last)
        else:  # rows first: as (height, width * 3) the picture needs no transposition for it
            last = nodes.add('Reshape', last, nodes.constant([height, 3 * width], np.int64))
            last = nodes.add('MatMul', nodes.constant(matrix), last)
            last = nodes.add('Reshape', last, nodes.constant([1, net_h, width, 3], np.int64))
    if not nchw:
        last = nodes.add('Transpose', last, perm=[0, 3, 1, 2])
    if resized:
        matrix = np.zeros((net_w, width), np.float32)
        matrix[u0:u0 + columns] = resize_matrix(columns, width, area=area, shrinks=shrinks)
        last = nodes.add('MatMul', last, nodes.constant(np.ascontiguousarray(matrix.T)))
        last = _whole(nodes, last, halved=(height, width) == (2 * rows, 2 * columns),
                      averaged=area and shrinks)
    if spec.colour == 'bgr':
        last = nodes.add('Gather', last, nodes.constant([2, 1, 0], np.int64), axis=1)
    if (rows, columns) != plan.network_hw:
        if not resized:  # the padding alone is missing
            last = nodes.add('Pad', last, nodes.constant(
                [0, 0, v0, u0, 0, 0, net_h - rows - v0, net_w - columns - u0], np.int64))
        fill = np.rint(spec.mean if spec.layout == 'float32_nchw' else (127.0,) * 3)
        around = np.ones((net_h, net_w), np.float32)
        around[v0:v0 + rows, u0:u0 + columns] = 0
        last = nodes.add('Add', last, nodes.constant(
            fill.reshape(1, 3, 1, 1) * around[None, None]))
    if spec.layout == 'float32_nchw':
        mean, std = (np.asarray(each).reshape(1, 3, 1, 1) for each in (spec.mean, spec.std))
        last = nodes.add('Sub', last, nodes.constant(mean))
        _renamed(graph, spec.name, nodes.add('Mul', last, nodes.constant(1 / std)))
        return
    _past_the_cast(nodes, graph, spec.name, last, source)


def _whole(nodes: _Nodes, last: str, *, halved: bool, averaged: bool) -> str:
    """Round to grey levels as cv2 does: pictures have whole ones outside too.

    Its means of four pixels round halves up, of other areas to even; its bilinear fixed point
    cuts off, which is 1/8 lower on average (OpenCV 4.14 on x86).
    """
    if averaged and not halved:
        return nodes.add('Round', last)
    return nodes.add('Floor', nodes.add('Add', last, nodes.constant(0.5 if averaged else 0.375)))


def _past_the_cast(
    nodes: _Nodes, graph: onnx.GraphProto, name: str, nchw: str, source: Path
) -> None:
    """Give float values to what the network does with its uint8 input after casting it.

    TensorRT has no uint8 inside of a graph. The network begins with Cast, Transpose in whatever
    order; these nodes go.
    """
    from onnx import TensorProto

    to_nchw = [0, 3, 1, 2]
    gone: list[onnx.NodeProto] = []
    nhwc = ''

    def users(tensor: str) -> list[onnx.NodeProto]:
        return [node for node in graph.node if tensor in node.input]

    def perm(node: onnx.NodeProto) -> list[int]:
        return next((list(a.ints) for a in node.attribute if a.name == 'perm'), [])

    def cast_to(node: onnx.NodeProto, values: str) -> None:
        """Replace a Cast of the picture by a tensor of the type that it casts to."""
        if node.op_type != 'Cast':
            raise FuseError(f'{source}: {node.op_type} {node.name} takes uint8; a Cast to float, '
                            'before or after a Transpose, is expected: export it again')
        kind = next(a.i for a in node.attribute if a.name == 'to')
        if kind not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            raise FuseError(f'{source}: {node.name} casts the picture to '
                            f'{TensorProto.DataType.Name(kind)}; a float is expected')
        gone.append(node)
        if kind == TensorProto.FLOAT16:
            values = nodes.add('Cast', values, to=kind)
        _renamed(graph, node.output[0], values)

    for first in users(name):
        if first.op_type == 'Transpose' and perm(first) == to_nchw:
            for cast in users(first.output[0]):
                cast_to(cast, nchw)
            gone.append(first)
            continue
        behind = users(first.output[0])
        if first.op_type == 'Cast' and behind and all(
                node.op_type == 'Transpose' and perm(node) == to_nchw for node in behind):
            result = f'{nchw}_cast'
            for node in behind:
                _renamed(graph, node.output[0], result)
                gone.append(node)
            first.output[0] = result
            cast_to(first, nchw)
            continue
        nhwc = nhwc or nodes.add('Transpose', nchw, perm=[0, 2, 3, 1])
        cast_to(first, nhwc)
    for node in gone:
        graph.node.remove(node)


def _taken(
    nodes: _Nodes, graph: onnx.GraphProto, name: str, map_hw: tuple[int, ...]
) -> str:
    """Take an output's name from it; returns it as (1, 1, h, w)."""
    raw = f'{nodes.name("network")}_{name}'
    for node in graph.node:
        for index, each in enumerate(node.output):
            if each == name:
                node.output[index] = raw
    _renamed(graph, name, raw)
    return nodes.add('Reshape', raw, nodes.constant([1, 1, *map_hw], np.int64))


def _unpadded(
    nodes: _Nodes, raw: str, name: str, plan: ResizePlan, map_hw: tuple[int, ...]
) -> tuple[int, ...]:
    """Give an output as the network makes it, without padding; returns its size."""
    last, map_hw = _inside(nodes, raw, plan, map_hw)
    nodes.add('Identity', last, out=name)
    return map_hw


def _way_out(
    nodes: _Nodes, last: str, name: str, output: OutputSpec, plan: ResizePlan,
    map_hw: tuple[int, ...],
) -> None:
    """Compute what `to_depth` and `ResizePlan.back` make of an output."""
    if name != output.name:  # confidence, sky
        nodes.add('Identity', _back(nodes, last, plan, map_hw), out=name)
        return
    convert = {'log_depth': 'Exp', 'inv_depth': 'Reciprocal',
               'rel_inv_depth': 'Reciprocal'}.get(output.kind, '')
    nothing, one = nodes.constant(0.0), nodes.constant(1.0)
    if convert == 'Reciprocal':  # 1 / 0 is no depth, and not to be computed
        usable = nodes.add('Greater', last, nothing)
        last = nodes.add('Reciprocal', nodes.add('Where', usable, last, one))
    else:
        last = nodes.add(convert, last) if convert else last
        usable = nodes.add('Greater', last, nothing)
    # A hole spreads to the pixels that touch it, as NaN does outside: its weight beside depth.
    # NaN itself would not do: 0 * NaN is NaN.
    depth = _back(nodes, nodes.add('Where', usable, last, nothing), plan, map_hw)
    hole = _back(nodes, nodes.add('Where', usable, nothing, one), plan, map_hw)
    in_hole = nodes.add('Greater', hole, nothing)
    if output.kind == 'rel_inv_depth':
        depth = nodes.add('Reciprocal', nodes.add('Where', in_hole, one, depth))
    nodes.add('Where', in_hole, nothing, depth, out=name)  # 0 is no depth in every kind


def _back(nodes: _Nodes, last: str, plan: ResizePlan, map_hw: tuple[int, ...]) -> str:
    """Resize as `ResizePlan.back` does."""
    last, map_hw = _inside(nodes, last, plan, map_hw)
    return last if map_hw == plan.size_hw else _bilinear(nodes, last, plan.size_hw)


def _inside(
    nodes: _Nodes, last: str, plan: ResizePlan, map_hw: tuple[int, ...]
) -> tuple[str, tuple[int, ...]]:
    """Cut off what belongs to padding; returns the map and its size."""
    v0, u0, rows, columns = plan.window
    if (rows, columns) == plan.network_hw:
        return last, map_hw
    if map_hw != plan.network_hw:
        last = _bilinear(nodes, last, plan.network_hw)
    starts, ends, axes = (
        nodes.constant(each, np.int64) for each in
        ([v0, u0], [v0 + rows, u0 + columns], [2, 3]))
    return nodes.add('Slice', last, starts, ends, axes), (rows, columns)


def _bilinear(nodes: _Nodes, tensor: str, size_hw: tuple[int, ...]) -> str:
    """Resize by cv2's INTER_LINEAR: pixel edges stay in place."""
    return nodes.add(
        'Resize', tensor, '', '', nodes.constant([1, 1, *size_hw], np.int64), mode='linear',
        coordinate_transformation_mode='half_pixel')


def _renamed(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let all users of a tensor use another one."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all tensors that the nodes of a graph, or of those in it, use."""
    import onnx

    found = {constant.name for constant in graph.initializer}
    for node in graph.node:
        found.update((*node.input, *node.output))
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found |= _names(attribute.g)
    return found

"""A network as one ONNX file with pre-processing inside, proven equal to its torch origin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import copy
from dataclasses import dataclass
import logging
from pathlib import Path
import tempfile
from typing import TYPE_CHECKING
import warnings

from depth_node.export.dynamic import NotDynamicError, Sizes, loosen
from depth_node.export.lint import FP16_PEAK, Peak, peak_activation
from depth_node.training.networks.card import INPUT_NAME, graph_outputs
import numpy as np
from numpy.typing import NDArray
import torch
from torch import nn

if TYPE_CHECKING:
    from depth_node.training.networks.base import DepthNetwork
    import onnx

OPSET = 17
EXPORTER_OPSET = 18  # the lowest that the exporter writes itself; converted down afterwards
IR_VERSION = 8  # old onnxruntime builds (JetPack) refuse newer ones
# A fused graph adds in another order than eager torch; measured here 1e-6 to 1e-5.
PARITY_TOLERANCE_REL = 1e-4
# Below this share of the mean a value is compared with the mean: a head that ends in ReLU gives
# zeros, of which no share can be taken.
PARITY_FLOOR = 0.2
# fp16 keeps 11 bits: pure convolution nets moved by 0.03 % on average. Over ten times that is a
# node that fp16 does not suit.
FP16_TOLERANCE_MEAN_REL = 0.005
# Largest difference of a confidence, whose range is 1. It is a steep function of what the network
# computes, and nobody decides by a thousandth.
CONFIDENCE_TOLERANCE = {'fp32': 1e-3, 'fp16': 0.03}
LARGE_CONSTANT_BYTES = 2**14
MAX_FILE_BYTES = 2**31 - 2**20  # a protobuf message ends at 2 GiB


class ExportError(RuntimeError):
    """The exported file is not what was asked for."""


@dataclass(frozen=True)
class Parity:
    """How far a runtime is from torch on the same pictures.

    Attributes:
        max_abs: largest difference, in the output's unit.
        max_rel: largest difference as a share of torch's value (or of `PARITY_FLOOR` of the
            mean, where that is more).
        mean_rel: mean of these shares.
        pictures: how many were compared.
        confidence_max: largest difference of the confidence; None where there is none.
    """

    max_abs: float
    max_rel: float
    mean_rel: float
    pictures: int
    confidence_max: float | None = None


class ImageToDepth(nn.Module):
    """A network that takes the picture as the camera gives it: uint8, NHWC, RGB."""

    def __init__(self, network: DepthNetwork) -> None:
        """Wrap a network; it is used in evaluation mode."""
        super().__init__()
        self.network = network
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer('mean', torch.tensor(network.mean).view(1, 3, 1, 1))
        self.register_buffer('std', torch.tensor(network.std).view(1, 3, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Compute the (1, 1, h, w) maps, one or several, from (1, H, W, 3) uint8 RGB."""
        found = self.predict(image)
        return found if len(found) > 1 else found[0]

    def predict(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps of `card.graph_outputs`."""
        return self.network.predict(self.normalised(image))

    def normalised(self, image: torch.Tensor) -> torch.Tensor:
        """Return what the network takes; float comes first, as TensorRT can only cast uint8."""
        return (image.float().permute(0, 3, 1, 2) - self.mean) / self.std


class HalfImageToDepth(ImageToDepth):
    """The same with a copy of the network in fp16; the picture is normalised in fp32."""

    def __init__(self, network: DepthNetwork) -> None:
        """Copy a network."""
        super().__init__(copy.deepcopy(network).half())

    def predict(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps of `card.graph_outputs` in float32."""
        found = self.network.predict(self.normalised(image).half())
        return tuple(each.float() for each in found)


def export_onnx(
    network: DepthNetwork, path: Path, *, precision: str = 'fp32', sizes: Sizes | None = None
) -> Parity:
    """Write `network` as ONNX at its own size or for many, and check it against torch.

    Args:
        network: put into evaluation mode for the export, and left so.
        path: the file to write; weights are inside it.
        precision: fp32, or fp16: a strongly typed graph, as TensorRT from 11 on needs it, whose
            input and output are those of fp32.
        sizes: height and width of the graph are free, for these sizes (`dynamic.sizes_of`);
            None fixes them to the network's.

    Returns:
        The measured parity, for fp16 too against the network in fp32.

    Raises:
        ValueError: another precision.
        ExportError: too large, wrong opset, a node that keeps its size in spite of `sizes`, an
            activation beyond what fp16 can hold, or ONNX
            Runtime and torch disagree by more than `PARITY_TOLERANCE_REL`, or the network's own
            `parity_tolerance_rel` (fp16: on average by more than `FP16_TOLERANCE_MEAN_REL`); the
            file is removed.
    """
    import onnx

    if precision not in ('fp32', 'fp16'):
        raise ValueError(f'precision {precision!r}, expected fp32 or fp16')
    network.eval()
    model = (HalfImageToDepth if precision == 'fp16' else ImageToDepth)(network).eval()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size > MAX_FILE_BYTES:
        raise ExportError(
            f'{path.name}: {size / 1e9:.1f} GB of {precision} weights, one ONNX file holds 2 GB; '
            'choose a smaller network'
        )
    height, width = network.size_hw if sizes is None else sizes.traced_hw
    example = torch.zeros((1, height, width, 3), dtype=torch.uint8)
    if precision == 'fp16' and not _runs(model, example):
        return _export_half_graph(network, path, sizes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        logging.getLogger('torch.onnx').setLevel(logging.ERROR)
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=EXPORTER_OPSET,
            external_data=False,
            input_names=[INPUT_NAME],
            output_names=graph_outputs(network),
            verbose=False,
        )
    graph = program.model_proto
    weights = _take_weights(graph)
    _fold_padding(graph)
    graph = _converted(graph)
    if sizes is not None:
        try:
            loosen(graph)
        except NotDynamicError as error:
            raise ExportError(f'{path.name} cannot be dynamic: {error}') from error
    _clean(graph)
    onnx.checker.check_model(graph, full_check=True)
    _put_weights(graph, weights)
    # Asking for a low opset can silently yield a higher one.
    found = {entry.domain or 'ai.onnx': entry.version for entry in graph.opset_import}
    if found != {'ai.onnx': OPSET}:
        raise ExportError(f'{path.name}: opset {found} after export, expected ai.onnx {OPSET}')
    onnx.save(graph, str(path))
    try:
        if precision == 'fp16':
            nominal_hw = network.size_hw if sizes is None else sizes.nominal_hw
            check_peak(path, peak_activation(path, parity_batches(nominal_hw)))
            return check_half_parity(network, path, sizes)
        return check_parity(model, path, sizes)
    except ExportError:
        path.unlink()
        raise


def _runs(model: nn.Module, example: torch.Tensor) -> bool:
    """Tell whether a network in fp16 can be run: one that casts between its layers cannot."""
    try:
        with torch.inference_mode():
            model(example)
    except RuntimeError:
        return False
    return True


def _export_half_graph(network: DepthNetwork, path: Path, sizes: Sizes | None) -> Parity:
    """Export in fp32 and convert the graph."""
    from depth_node.export.quantize import halve_onnx

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / path.name
        export_onnx(network, source, sizes=sizes)
        nominal_hw = network.size_hw if sizes is None else sizes.nominal_hw
        halve_onnx(source, path, list(parity_pictures(nominal_hw)))
    try:
        return check_half_parity(network, path, sizes)
    except ExportError:
        path.unlink()
        raise


def parity_batches(size_hw: tuple[int, int]) -> list[dict[str, NDArray[np.uint8]]]:
    """Return `parity_pictures` as feeds of a graph."""
    return [{INPUT_NAME: picture[None]} for picture in parity_pictures(size_hw)]


def check_peak(path: Path, peak: Peak) -> None:
    """Refuse a graph whose activations come near to the largest number of fp16.

    Raises:
        ExportError: naming the node.
    """
    if not peak.value <= FP16_PEAK:
        raise ExportError(
            f'{path.name}: {peak} on the parity pictures, fp16 holds 65504 and half of that is '
            f'kept in reserve; use fp32 or bf16 for this network, or export it again after '
            'training with weight decay or a norm before that node'
        )


def _take_weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Make inputs of large constants: what works on the graph would copy them again and again."""
    from onnx import helper

    graph = model.graph
    weights = [item for item in graph.initializer if len(item.raw_data) > LARGE_CONSTANT_BYTES]
    for item in weights:
        graph.initializer.remove(item)
        graph.input.append(
            helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))
        )
    return weights


def _put_weights(model: onnx.ModelProto, weights: list[onnx.TensorProto]) -> None:
    """Make constants again of what `_take_weights` took; unused ones are left out."""
    graph = model.graph
    names = {item.name for item in weights}
    for item in [item for item in graph.input if item.name in names]:
        graph.input.remove(item)
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(item for item in weights if item.name in used)


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert to OPSET, past Pad and Split, for which the converter has no rule.

    What opset 18 added is an input with axes to the one and an attribute that counts its outputs
    to the other. Where a node does not use them (outputs of one size are the rule in 17), it
    means the same in 17; it crosses the conversion under another name.
    """
    import onnx.version_converter

    hidden = 'depth_node.unconverted'
    crossing = [node for node in model.graph.node if node.op_type in ('Pad', 'Split')]
    for node in crossing:
        if node.op_type == 'Pad' and len(node.input) > 3 and node.input[3]:
            raise ExportError(f'{node.name}: Pad with axes does not exist in opset {OPSET}')
        for attribute in [a for a in node.attribute if a.name == 'num_outputs']:
            node.attribute.remove(attribute)
        node.domain = hidden
    if crossing:
        model.opset_import.append(onnx.helper.make_opsetid(hidden, 1))
    model = onnx.version_converter.convert_version(model, OPSET)
    for node in model.graph.node:
        if node.domain == hidden:
            node.domain = ''
    kept = [entry for entry in model.opset_import if entry.domain != hidden]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return model


def _clean(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes for its own debugging: source paths and stack traces."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.doc_string = 'depth_node', '', ''
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = 'depth', ''
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        item.doc_string = ''
        if hasattr(item, 'metadata_props'):
            del item.metadata_props[:]
    if hasattr(graph, 'metadata_props'):
        del graph.metadata_props[:]


def _fold_padding(model: onnx.ModelProto) -> None:
    """Move constant zero padding into the convolution after it.

    The encoder pads unevenly at stride 2, which torch can only say as Pad + Conv. As two nodes
    the quantiser puts a quantise/dequantise pair between them, and runtimes copy the array.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {item.name: item for item in graph.initializer}
    users: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    producers = {output: node for node in graph.node for output in node.output}
    for conv in graph.node:
        pad = producers.get(conv.input[0]) if conv.op_type == 'Conv' else None
        if pad is None or pad.op_type != 'Pad' or users[pad.output[0]] != 1:
            continue
        mode = next((a.s for a in pad.attribute if a.name == 'mode'), b'constant')
        pads = numpy_helper.to_array(constants[pad.input[1]])
        value = 0.0
        if len(pad.input) > 2 and pad.input[2]:
            value = float(numpy_helper.to_array(constants[pad.input[2]]))
        attribute = next(a for a in conv.attribute if a.name == 'pads')
        if mode != b'constant' or value != 0.0 or any(attribute.ints) or pads[[0, 1, 4, 5]].any():
            continue
        attribute.ints[:] = [int(pads[i]) for i in (2, 3, 6, 7)]
        conv.input[0] = pad.input[0]
        graph.node.remove(pad)
    used = {name for node in graph.node for name in node.input}
    for item in list(graph.initializer):
        if item.name not in used:
            graph.initializer.remove(item)


def parity_pictures(size_hw: tuple[int, int], count: int = 4) -> NDArray[np.uint8]:
    """Make seeded pictures, (count, H, W, 3) uint8: smooth colour fields and one of noise."""
    import cv2

    rng = np.random.default_rng(20)
    height, width = size_hw
    pictures = []
    for cells in [4 * 2**index for index in range(count - 1)]:
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        pictures.append(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    pictures.append(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return np.stack(pictures)


def check_parity(
    model: ImageToDepth, path: Path, sizes: Sizes | None = None, *, there: bool = False
) -> Parity:
    """Compare torch and ONNX Runtime on seeded pictures, for a dynamic graph of several sizes.

    Args:
        model: the network in torch.
        path: the file.
        sizes: those of a dynamic graph.
        there: compare the outputs that the file has, instead of expecting all of the network's.

    Raises:
        ExportError: they differ by more than the network's tolerance somewhere.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])

    names = graph_outputs(model.network)
    if there:
        found = {output.name for output in session.get_outputs()}
        names = [name for name in names if name in found]

    def run(picture: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        return [np.asarray(each, np.float32)
                for each in session.run(names, {INPUT_NAME: picture[None]})]

    parity = compare(model, run, sizes)
    _check_confidence(path, parity, 'fp32')
    allowed = max(PARITY_TOLERANCE_REL, getattr(model.network, 'parity_tolerance_rel', 0.0))
    if not parity.max_rel <= allowed:
        raise ExportError(
            f'{path.name}: ONNX Runtime differs from torch by up to {parity.max_rel:.2e} of the '
            f'depth ({parity.max_abs:.2e}), expected <= {allowed:.0e}; do not ship '
            'this file'
        )
    return parity


def check_half_parity(network: DepthNetwork, path: Path, sizes: Sizes | None = None) -> Parity:
    """Compare torch in fp32 and ONNX Runtime in fp16 on seeded pictures.

    ONNX Runtime's CPU kernels compute fp16 nodes in fp32 and round between them: a GPU rounds
    more often.

    Raises:
        ExportError: they differ on average by more than `FP16_TOLERANCE_MEAN_REL`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])

    names = graph_outputs(network)

    def run(picture: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        return [np.asarray(each) for each in session.run(names, {INPUT_NAME: picture[None]})]

    parity = compare(ImageToDepth(network).eval(), run, sizes)
    _check_confidence(path, parity, 'fp16')
    if not parity.mean_rel <= FP16_TOLERANCE_MEAN_REL:
        raise ExportError(
            f'{path.name}: fp16 moves the depth by {parity.mean_rel:.2%} on average, expected <= '
            f'{FP16_TOLERANCE_MEAN_REL:.1%}; use fp32 or bf16 for this network'
        )
    return parity


def _check_confidence(path: Path, parity: Parity, precision: str) -> None:
    """Refuse a graph whose confidence is another than torch's.

    Raises:
        ExportError: it is.
    """
    found, allowed = parity.confidence_max, CONFIDENCE_TOLERANCE[precision]
    if found is not None and not found <= allowed:
        raise ExportError(
            f'{path.name}: confidence differs from torch by up to {found:.2e}, expected <= '
            f'{allowed:g}; do not ship this file'
        )


def compare(
    model: ImageToDepth,
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32] | Sequence[NDArray[np.float32]]],
    sizes: Sizes | None = None,
) -> Parity:
    """Measure how far a runtime is from torch.

    Args:
        model: the network in torch.
        run: takes an (H, W, 3) uint8 picture, returns what the graph gave for it: depth, or
            depth and confidence.
        sizes: those of a dynamic graph; it is compared at `Sizes.samples`.

    Raises:
        ExportError: the graph's map has another shape than torch's.
    """
    if sizes is None:
        pictures = list(parity_pictures(model.network.size_hw))
    else:
        # the last two: smooth, and noise
        pictures = [p for size_hw in sizes.samples() for p in parity_pictures(size_hw, 3)[-2:]]
    largest, worst, means, sure = 0.0, 0.0, [], []
    for picture in pictures:
        with torch.inference_mode():
            maps = [each.numpy() for each in model.predict(torch.from_numpy(picture[None]))]
        try:
            given = run(picture)
        except Exception as error:  # ONNX Runtime's errors have no common base
            if sizes is None:
                raise
            raise ExportError(
                f'at {picture.shape[1]}x{picture.shape[0]} the graph does not run '
                f'({str(error).splitlines()[0]}); export it without --dynamic'
            ) from error
        pairs = list(zip(
            [given] if isinstance(given, np.ndarray) else given, maps, strict=False))
        for index, (found, expected) in enumerate(pairs):
            if sizes is None:
                found = found.reshape(expected.shape)
                pairs[index] = found, expected
            if found.shape != expected.shape:
                raise ExportError(
                    f'at {picture.shape[1]}x{picture.shape[0]} the graph gives a map of shape '
                    f'{found.shape}, torch {expected.shape}; export it without --dynamic'
                )
        sure += [float(np.abs(found - expected).max()) for found, expected in pairs[1:]]
        found, expected = pairs[0]
        difference, size = np.abs(found - expected), np.abs(expected)
        share = difference / np.maximum(size, max(PARITY_FLOOR * size.mean(), 1e-12))
        largest, worst = max(largest, float(difference.max())), max(worst, float(share.max()))
        means.append(float(share.mean()))
    return Parity(
        largest, worst, float(np.mean(means)), len(pictures), max(sure) if sure else None)

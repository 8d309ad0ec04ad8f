"""`depth-node quantize`: add an INT8 file to a model's card."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depth_node.model_card import ModelCard
    from depth_node.training.datasets import DepthDataset
    from depth_node.training.frame import Frame
    import numpy as np
    from numpy.typing import NDArray

HELP = 'make an INT8 file for CPUs, and measure what it costs'

_EPILOG = """\
Static quantisation by ONNX Runtime (uint8 activations, int8 weights per channel), calibrated with
training frames. The error is measured on validation frames, for FP32 and for INT8.

example:
  depth-node quantize models/small.yaml --data data/frames
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    parser.add_argument('model', help='card name, card file or ONNX file with a card')
    parser.add_argument(
        '--data', type=Path, required=True, help='data folder with the splits train and val'
    )
    parser.add_argument(
        '--kind', default='rendered', help='of the data set, see depth-node data check (rendered)'
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE.onnx',
        help='the INT8 file (beside the FP32 one, as NAME.int8.onnx)',
    )
    parser.add_argument(
        '--frames',
        type=int,
        default=96,
        metavar='N',
        help='calibration pictures, evenly spread over the training split (96)',
    )
    parser.add_argument(
        '--val-frames',
        type=int,
        default=200,
        metavar='N',
        help='pictures that the error is measured on, at most (200)',
    )


def run(args: argparse.Namespace) -> int:
    """Quantise, measure, update the card."""
    from depth_node.cli.export import portable
    from depth_node.export.card import with_int8
    from depth_node.export.quantize import quantize_onnx
    from depth_node.model_card import ModelCard
    from depth_node.training.datasets import open_dataset

    card = ModelCard.load(args.model)
    source = card.verify_file('fp32')
    target = args.out or source.with_name(f'{source.stem}.int8.onnx')
    data = open_dataset(args.kind, args.data, 'train')
    pictures = [frame.rgb for frame in _frames(data, args.frames, card)]
    quantize_onnx(source, target, pictures)
    provenance: dict[str, Any] = {
        'command': portable(['depth-node', *sys.argv[1:]]),
        'method': 'onnxruntime static QDQ, u8s8 per channel, MinMax; stem, first block and head '
        'in float',
        'calibration_frames': len(pictures),
        'data': data.fingerprint(),
    }
    card = with_int8(card, target, provenance)
    validation = open_dataset(args.kind, args.data, 'val')
    scores = _measure(card, _frames(validation, args.val_frames, card))
    provenance['val_abs_rel'] = scores
    card = replace(card, provenance={**card.provenance, 'int8': provenance})
    print(
        f'{target}: {target.stat().st_size / 1e6:.1f} MB; AbsRel on validation frames: '
        + ', '.join(f'{name} {value:.4f}' for name, value in scores.items())
    )
    print(f'{card.save()}: written')
    return 0


def _frames(data: DepthDataset, count: int, card: ModelCard) -> list[Frame]:
    """Read evenly spread frames of a data set at the network's size."""
    from depth_node.cli import CommandError
    from depth_node.training.augment import fit
    import numpy as np

    size_hw = card.input.size_hw
    if size_hw is None or card.input.layout != 'uint8_nhwc':
        raise CommandError(
            f'model {card.name}: only networks of a fixed size that take uint8 '
            'pictures can be quantised; export it with: depth-node export'
        )
    chosen = np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)
    return [fit(data.read(int(index)), size_hw) for index in chosen]


def _measure(card: ModelCard, frames: list[Frame]) -> dict[str, float]:
    """Mean AbsRel per precision and backend on frames at network size.

    Metric, or after affine alignment where the output is relative.
    """
    import cv2
    from depth_node.backends import BackendError, open_backend
    from depth_node.evaluation.metrics import ErrorSums, align_affine
    from depth_node.postprocess import as_map, to_depth
    import numpy as np

    scores = {}
    for name, precision in (
        ('onnxruntime', 'fp32'),
        ('onnxruntime', 'int8'),
        ('openvino', 'int8'),
    ):
        try:
            backend = open_backend(card, name, precision)
        except BackendError as error:
            print(f'{name} {precision}: not measured: {error}', file=sys.stderr)
            continue
        with backend:
            errors = []
            for frame in frames:
                raw = as_map(backend.run(frame.rgb[None])[card.output.name])
                depth: NDArray[np.float32] = to_depth(raw, card.output, frame.camera)
                at_truth = cv2.resize(depth, frame.depth.shape[::-1])
                if not card.output.metric:
                    at_truth = align_affine(at_truth, frame.depth).depth
                errors.append(ErrorSums.of(at_truth, frame.depth).abs_rel)
        scores[f'{name} {precision}'] = round(float(np.nanmean(errors)), 4)
    return scores

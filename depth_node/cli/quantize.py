"""`depth-node quantize`: add an INT8 file to a model's card."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depth_node.model_card import ModelCard
    from depth_node.training.augment import Frame
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
        '--data', type=Path, required=True, help='data folder of rendered frames (train and val)'
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
    from depth_node.training.datasets import fingerprint

    card = ModelCard.load(args.model)
    source = card.verify_file('fp32')
    target = args.out or source.with_name(f'{source.stem}.int8.onnx')
    pictures = [frame.rgb for frame in _frames(args.data, 'train', args.frames, card)]
    quantize_onnx(source, target, pictures)
    provenance: dict[str, Any] = {
        'command': portable(['depth-node', *sys.argv[1:]]),
        'method': 'onnxruntime static QDQ, u8s8 per channel, MinMax; stem, first block and head '
        'in float',
        'calibration_frames': len(pictures),
        'data_sha256_of_names_and_sizes': fingerprint(args.data)['sha256_of_names_and_sizes'],
    }
    card = with_int8(card, target, provenance)
    scores = _measure(card, _frames(args.data, 'val', args.val_frames, card))
    provenance['rendered_val_abs_rel'] = scores
    card = replace(card, provenance={**card.provenance, 'int8': provenance})
    print(
        f'{target}: {target.stat().st_size / 1e6:.1f} MB; AbsRel on rendered validation frames: '
        + ', '.join(f'{name} {value:.4f}' for name, value in scores.items())
    )
    print(f'{card.save()}: written')
    return 0


def _frames(root: Path, split: str, count: int, card: ModelCard) -> list[Frame]:
    """Read evenly spread frames of a split at the network's size."""
    from depth_node.cli import CommandError
    from depth_node.training.augment import fit
    from depth_node.training.datasets.rendered import RenderedFrames, read_frame

    size_hw = card.input.size_hw
    if size_hw is None or card.input.layout != 'uint8_nhwc':
        raise CommandError(
            f'model {card.name}: only networks of a fixed size that take uint8 '
            'pictures can be quantised; export it with: depth-node export'
        )
    data = RenderedFrames(root, split, size_hw, limit=count)
    return [fit(read_frame(files), size_hw) for files in data.files]


def _measure(card: ModelCard, frames: list[Frame]) -> dict[str, float]:
    """Mean metric AbsRel per precision and backend on frames at network size."""
    from depth_node.backends import BackendError, open_backend
    from depth_node.evaluation.metrics import abs_rel
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
                errors.append(abs_rel(depth, frame.depth))
        scores[f'{name} {precision}'] = round(float(np.nanmean(errors)), 4)
    return scores

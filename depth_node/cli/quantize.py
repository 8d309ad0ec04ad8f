"""`depth-node quantize`: add files of fewer bits to a model's card."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
import os
from pathlib import Path
import sys
import tempfile
from typing import TYPE_CHECKING, Any, Final

from depth_node.cli._common import data_options, one_of_each, positive_int

if TYPE_CHECKING:
    from depth_node.model_card import ModelCard
    from depth_node.training.datasets import DepthDataset
    from depth_node.training.frame import Frame
    import numpy as np
    from numpy.typing import NDArray

HELP = 'make INT8 and fp16 files of a model, and measure what they cost'

_EPILOG = """\
  int8      for CPUs (OpenVINO, ONNX Runtime): uint8 activations, int8 weights per channel
  int8_trt  for TensorRT: symmetric int8, as it takes no other (and OpenVINO runs that wrongly)
  fp16      for TensorRT from 11 on, typed inside; without calibration

Static quantisation by ONNX Runtime, calibrated with training frames. The error is measured on
validation frames, for FP32 and for each file; the card keeps the figures.

examples:
  depth-node quantize models/small.yaml --data data/frames
  depth-node quantize my.onnx --data data/frames --precisions int8,int8_trt,fp16

A network of another tool: first depth-node models add net.onnx ..., then as above.
"""
_PRECISIONS: Final = ('int8', 'int8_trt', 'fp16')


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
        '--option',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='of the data set, as in depth-node data check: k=[525,525,319.5,239.5]; repeatable',
    )
    parser.add_argument(
        '--precisions',
        type=one_of_each(_PRECISIONS),
        default=('int8',),
        metavar='LIST',
        help='what to make: ' + ', '.join(_PRECISIONS) + ' (int8)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE.onnx',
        help='the file, where one is made (beside the FP32 one, as NAME.PRECISION.onnx)',
    )
    parser.add_argument(
        '--frames',
        type=positive_int,
        default=96,
        metavar='N',
        help='calibration pictures, evenly spread over the training split (96)',
    )
    parser.add_argument(
        '--val-frames',
        type=positive_int,
        default=200,
        metavar='N',
        help='pictures that the error is measured on, at most (200)',
    )


def run(args: argparse.Namespace) -> int:
    """Make the files, measure, update the card."""
    from depth_node.cli import CommandError, UsageError
    from depth_node.cli.export import portable
    from depth_node.export.card import with_file
    from depth_node.export.quantize import FORMS, MIN_PICTURES, halve_onnx, quantize_onnx
    from depth_node.model_card import ModelCard
    from depth_node.training.datasets import open_dataset

    if args.out is not None and len(args.precisions) > 1:
        raise UsageError('--out names one file: with several --precisions leave it out')
    calibrated = any(precision in FORMS for precision in args.precisions)
    if calibrated and args.frames < MIN_PICTURES:
        raise UsageError(f'--frames {args.frames}: at least {MIN_PICTURES} pictures calibrate')
    options = data_options(args.option)
    card = ModelCard.load(args.model)
    source = card.verify_file('fp32')
    data = open_dataset(args.kind, args.data, 'train', **options)
    if calibrated and len(data) < MIN_PICTURES:
        raise CommandError(f'{args.data}: {len(data)} training frames, at least {MIN_PICTURES} '
                           'calibrate; give a folder with more')
    pictures = [frame.rgb for frame in _frames(data, args.frames, card)]
    validation = open_dataset(args.kind, args.data, 'val', **options)
    if card.output.kind == 'canonical_depth' and not validation.has_camera:
        raise CommandError(
            f'{args.data}: {args.kind} frames without intrinsics, which the error of a network of '
            f'{card.output.kind} needs; give them: --option k=[fx,fy,cx,cy]')
    frames = _frames(validation, args.val_frames, card)
    reference = _measure(card, ('fp32',), frames)
    for precision in args.precisions:
        target = args.out or source.with_name(f'{source.stem}.{precision}.onnx')
        provenance: dict[str, Any] = {'command': portable(['depth-node', *sys.argv[1:]])}
        target.parent.mkdir(parents=True, exist_ok=True)
        # the file comes to its place together with its card, or not at all
        with tempfile.TemporaryDirectory(prefix='.quantize-', dir=target.parent) as folder:
            new = Path(folder) / target.name
            if precision == 'fp16':
                halve_onnx(source, new, pictures, spec=card.input)
                provenance['method'] = 'typed fp16 from the first convolution to the last'
            else:
                quantize_onnx(source, new, pictures, precision=precision, spec=card.input)
                provenance['method'] = FORMS[precision].method
            provenance.update(calibration_frames=len(pictures), data=data.fingerprint())
            made = with_file(card, precision, new, provenance)
            scores = {**reference, **_measure(made, (precision,), frames)}
            [base] = reference.values()
            change = {
                name: round(value - base, 4)
                for name, value in scores.items() if name not in reference
            }  # fmt: skip
            provenance.update(
                val_abs_rel=scores, abs_rel_change=change, val_data=validation.fingerprint(),
                val_frames=len(frames),
            )  # fmt: skip
            file = replace(made.precisions[precision], path=target)
            card = replace(
                made, precisions={**made.precisions, precision: file},
                provenance={**made.provenance, precision: provenance},
            )  # fmt: skip
            os.replace(new, target)
            card.save()
        print(
            f'{target}: {target.stat().st_size / 1e6:.1f} MB; AbsRel on {len(frames)} validation '
            'frames: ' + ', '.join(
                f'{name} {value:.4f}' + (f' ({change[name]:+.4f})' if name in change else '')
                for name, value in scores.items())
        )  # fmt: skip
    print(f'{card.path}: written')
    return 0


def _frames(data: DepthDataset, count: int, card: ModelCard) -> list[Frame]:
    """Read evenly spread frames of a data set at the network's size."""
    from depth_node.cli import CommandError
    from depth_node.training.augment import fit
    import numpy as np

    size_hw = card.input.size_hw or (card.check.size_hw if card.check else None)
    if size_hw is None:
        raise CommandError(
            f'model {card.name}: a card of many sizes without reference statistics; write it '
            'again: depth-node export --dynamic or depth-node models add'
        )
    chosen = np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)
    return [fit(data.read(int(index)), size_hw) for index in chosen]


def _measure(
    card: ModelCard, precisions: tuple[str, ...], frames: list[Frame]
) -> dict[str, float]:
    """Mean AbsRel per runtime and precision on frames at network size.

    Metric, or after affine alignment where the output is relative. What no CPU runtime is meant
    to run is computed by ONNX Runtime as the graph is written: that is what TensorRT must find.
    """
    import cv2
    from depth_node.evaluation.metrics import ErrorSums, align_affine, align_affine_depth
    from depth_node.postprocess import to_depth
    import numpy as np

    kind, scores = card.output.kind, {}
    for precision in precisions:
        for name, compute in _runners(card, precision):
            errors = []
            for frame in frames:
                depth = to_depth(compute(frame.rgb), card.output, frame.camera)
                at_truth = cv2.resize(depth, frame.depth.shape[::-1])
                if not card.output.metric:
                    align = align_affine_depth if kind == 'rel_depth' else align_affine
                    at_truth = align(at_truth, frame.depth).depth
                errors.append(ErrorSums.of(at_truth, frame.depth).abs_rel)
            scores[f'{name} {precision}'] = round(float(np.nanmean(errors)), 4)
    return scores


def _runners(
    card: ModelCard, precision: str
) -> Iterator[tuple[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]]]:
    """Give what computes a precision: (name, function from a picture to the network's map)."""
    from depth_node.backends import BackendError, open_backend
    from depth_node.export.card import feeder
    from depth_node.postprocess import as_map

    feed = feeder(card.input)
    if precision in ('fp16', 'int8_trt'):
        from depth_node.export.card import file_runner

        yield 'as written', file_runner(
            card.precisions[precision].path, as_written=True, card=card)  # fmt: skip
        return
    for name in ('onnxruntime', 'openvino') if precision == 'int8' else ('onnxruntime',):
        try:
            backend = open_backend(card, name, precision)
        except BackendError as error:
            print(f'{name} {precision}: not measured: {error}', file=sys.stderr)
            continue
        with backend:
            yield name, lambda rgb, b=backend: as_map(b.run(feed(rgb))[card.output.name])

#!/usr/bin/env python3
"""Make docs/pictures: the model's depth of the demo clip and of three real pictures.

    python scripts/doc_pictures.py

Needs what `depth-node infer` needs, scikit-image (pip install scikit-image), and left.jpg of
OpenCV's samples, which Debian has in opencv-doc. Run it again after the bundled model has changed;
docs/pictures/README.md then names the new one.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
import sys

import cv2
import numpy as np
from numpy.typing import NDArray

CLONE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CLONE))

from depth_node.camera import Camera  # noqa: E402
from depth_node.cli import CommandError  # noqa: E402
from depth_node.cli._common import add_model_arguments, open_model  # noqa: E402
from depth_node.cli._demo.clip import ClipError, load_clip  # noqa: E402
from depth_node.cli._demo.outputs import legend  # noqa: E402
from depth_node.evaluation.compare import headline  # noqa: E402
from depth_node.evaluation.readers import DataError, motorcycle_reader, read_rgb  # noqa: E402
from depth_node.images import colorize  # noqa: E402
from depth_node.pipeline import DepthPipeline  # noqa: E402

MAX_BYTES = 120_000
PANEL_WIDTH_PX = 300
CAPTION_PX = 18
CLIP_SHARES = (0.1, 0.45, 0.8)  # where in the clip its three frames are
OPENCV_SAMPLES = Path('/usr/share/doc/opencv-doc/examples/data')
ASSUMED_HFOV_DEG = 60.0  # of pictures that do not say: their metres are a guess


@dataclass(frozen=True)
class Shot:
    """A picture to be shown.

    Attributes:
        rgb: (H, W, 3) uint8.
        camera: that took it.
        true_depth: (H, W) or smaller, metres, NaN = unknown; None where nobody measured it.
    """

    rgb: NDArray[np.uint8]
    camera: Camera
    true_depth: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Page:
    """One file of docs/pictures.

    Attributes:
        name: of the file, without its ending.
        shots: one row each.
        about: what is seen.
        credit: source and licence.
    """

    name: str
    shots: tuple[Shot, ...]
    about: str
    credit: str


def clip_page(folder: Path) -> Page:
    """Take three frames of the demo clip."""
    clip = load_clip(folder)
    indices = [round(share * (len(clip.pictures) - 1)) for share in CLIP_SHARES]
    shots = tuple(
        Shot(read_rgb(clip.pictures[i]), clip.camera,
             clip.true_depth(i) if clip.true_depths else None)
        for i in indices
    )  # fmt: skip
    return Page(
        'demo', shots, f'three frames of the demo clip (numbers {", ".join(map(str, indices))}), '
        'a rendered room that no training has seen',
        'rendered for this project; its models are credited in `models/ATTRIBUTION.md`')


def real_pages(samples: Path) -> list[Page]:
    """Take three real pictures.

    Raises:
        DataError: one of them is not on this machine.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise DataError(f'scikit-image does not import ({error}); run: pip install scikit-image'
                        ) from error
    coffee = np.ascontiguousarray(data.coffee()[..., :3])  # type: ignore[no-untyped-call]
    (motorcycle,) = motorcycle_reader()
    if not (samples / 'left.jpg').is_file():
        raise DataError(f'{samples}: no left.jpg; it is one of the samples of OpenCV: Debian, '
                        'Ubuntu: sudo apt install opencv-doc, else name the folder samples/data '
                        'of its source by --opencv-samples')
    books = read_rgb(samples / 'left.jpg')
    guess = f'camera unknown: {ASSUMED_HFOV_DEG:g} degrees assumed, so the metres are a guess'
    assert motorcycle.camera is not None
    return [
        Page('motorcycle', (Shot(motorcycle.rgb, motorcycle.camera, motorcycle.true_depth),),
             'Motorcycle; the truth is structured light',
             'D. Scharstein et al., High-resolution stereo datasets with subpixel-accurate ground '
             'truth, GCPR 2014 (Middlebury), as it comes with scikit-image (BSD-3-Clause)'),
        Page('coffee', (_guessed(coffee),), f'coffee cup; {guess}',
             'Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0; from scikit-image'),
        Page('books', (_guessed(books),), f'two books on a table; {guess}',
             'left.jpg of the samples of OpenCV; Apache-2.0'),
    ]


def _guessed(rgb: NDArray[np.uint8]) -> Shot:
    return Shot(rgb, Camera.from_fov((rgb.shape[0], rgb.shape[1]), ASSUMED_HFOV_DEG))


def colour_range(depths: list[NDArray[np.float32]]) -> tuple[float, float]:
    """Return the nearest and farthest depth to paint: 1st to 99th percentile of what is known.

    Raises:
        DataError: nothing is.
    """
    known = np.concatenate([depth[np.isfinite(depth) & (depth > 0)] for depth in depths])
    if known.size == 0:
        raise DataError('the model gives no depth for this picture: there is nothing to paint')
    near, far = (float(value) for value in np.percentile(known, (1, 99)))
    return near, max(far, 1.2 * near)


def page_picture(page: Page, pipeline: DepthPipeline) -> NDArray[np.uint8]:
    """Paint a page: picture, depth and, where it is known, true depth; below them the colours.

    One range of colours serves the whole page. It is that of the truth, where there is one, so
    that a wrong scale shows as a wrong colour. Black: no depth.

    Returns:
        (H, W, 3) bgr.
    """
    predicted = [np.array(pipeline.run(shot.rgb, shot.camera).depth) for shot in page.shots]
    true = [shot.true_depth for shot in page.shots if shot.true_depth is not None]
    near, far = colour_range(true or predicted)
    rows = []
    for shot, depth in zip(page.shots, predicted, strict=True):
        panels = [_panel(np.asarray(cv2.cvtColor(shot.rgb, cv2.COLOR_RGB2BGR), np.uint8)),
                  _panel(_painted(depth, near, far))]
        if shot.true_depth is not None:
            panels.append(_panel(_painted(shot.true_depth, near, far), panels[0].shape[0]))
        rows.append(np.concatenate(panels, axis=1))
    body = np.concatenate(rows, axis=0)
    titles = ['picture', 'depth', 'true depth'][:body.shape[1] // PANEL_WIDTH_PX]
    head = np.full((CAPTION_PX, body.shape[1], 3), 255, np.uint8)
    for i, title in enumerate(titles):
        cv2.putText(head, title, (PANEL_WIDTH_PX * i + 4, CAPTION_PX - 5),
                    cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([head, body, legend(body.shape[1], near, far)], axis=0)


def _painted(depth: NDArray[np.float32], near: float, far: float) -> NDArray[np.uint8]:
    # too near is -Inf, and black like every other pixel without depth
    return colorize(np.ascontiguousarray(depth, np.float32), near, far)


def _panel(bgr: NDArray[np.uint8], height: int | None = None) -> NDArray[np.uint8]:
    height = height or round(bgr.shape[0] * PANEL_WIDTH_PX / bgr.shape[1])
    small = cv2.resize(bgr, (PANEL_WIDTH_PX, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def write_jpeg(path: Path, bgr: NDArray[np.uint8]) -> None:
    """Write a JPEG of the best quality that stays below MAX_BYTES.

    Raises:
        DataError: none does.
    """
    for quality in range(92, 40, -4):
        ok, data = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if ok and data.size <= MAX_BYTES:
            path.write_bytes(data.tobytes())
            return
    raise DataError(f'{path}: more than {MAX_BYTES} bytes at any useful quality')


def main(arguments: list[str]) -> int:
    """Write all pictures and their list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=CLONE / 'docs' / 'pictures', metavar='DIR',
                        help='(docs/pictures)')
    parser.add_argument('--clip', type=Path, default=CLONE / 'demo' / 'clip', metavar='DIR',
                        help='(demo/clip)')
    parser.add_argument('--opencv-samples', type=Path, default=OPENCV_SAMPLES, metavar='DIR',
                        help=f'folder of left.jpg ({OPENCV_SAMPLES})')
    add_model_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        pages = [clip_page(args.clip), *real_pages(args.opencv_samples)]
        card, backend = open_model(args)
        with backend:
            spec = card.precisions.get(backend.precision) or card.precisions['fp32']
            model = headline({'model': card.name, 'precision': backend.precision,
                              'file': spec.path.name, 'sha256': spec.sha256,
                              'backend': backend.name})
            args.out.mkdir(parents=True, exist_ok=True)
            for page in pages:
                # a pipeline of its own: no filter remembers the picture before
                picture = page_picture(page, DepthPipeline(backend))
                write_jpeg(args.out / f'{page.name}.jpg', picture)
    except (ClipError, DataError, CommandError, ValueError, OSError) as error:
        print(f'doc_pictures: {error}', file=sys.stderr)
        return 1
    lines = ['# Pictures', '',
             f'Made by `python scripts/doc_pictures.py` with {model}, filters as on the robot. '
             'Colours follow inverse depth; black: no depth.', '',
             '| file | what | source, licence |', '|---|---|---|',
             *(f'| [{page.name}.jpg]({page.name}.jpg) | {page.about} | {page.credit} |'
               for page in pages)]
    (args.out / 'README.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    print(f'{args.out}: {", ".join(page.name for page in pages)} by {model}')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))

"""A contact sheet: pictures of a data set beside what is known about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
from depth_node.cli import CommandError
from depth_node.images import colorize
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from depth_node.training.frame import Frame

TILE_WIDTH_PX = 240
CAPTION_PX = 18
PAIRS_PER_ROW = 2
# of relative inverse depth, which has no range of its own: it is painted as depth 1 to 10
_RELATIVE_RANGE = (1.0, 10.0)
_FARTHER_BGR, _NEARER_BGR, _EQUAL_BGR = (255, 80, 0), (0, 60, 255), (0, 220, 0)


@dataclass(frozen=True)
class Tile:
    """A frame, small.

    Attributes:
        name: the caption.
        bgr: (h, TILE_WIDTH_PX, 3), with its pairs drawn.
        depth: (h, TILE_WIDTH_PX) float32, NaN = unknown; relative where `relative`; None where
            nothing is known.
        other: a picture to show in depth's place: the frame's first view.
        relative: depth has no unit.
        pairs: pairs are drawn.
    """

    name: str
    bgr: NDArray[np.uint8]
    depth: NDArray[np.float32] | None = None
    other: NDArray[np.uint8] | None = None
    relative: bool = False
    pairs: bool = False

    @classmethod
    def of(cls, name: str, frame: Frame) -> Tile:
        """Shrink a frame."""
        height, width = frame.size_hw
        size_wh = (TILE_WIDTH_PX, max(1, round(height * TILE_WIDTH_PX / width)))
        bgr = _small(frame.rgb, size_wh)
        if frame.pairs is not None:
            scale = size_wh[0] / width
            for uv, relation in zip(frame.pairs.uv[:200], frame.pairs.relation, strict=False):
                first, second = (tuple(round(float(x) * scale) for x in uv[k:k + 2])
                                 for k in (0, 2))
                colours = {1: (_FARTHER_BGR, _NEARER_BGR), -1: (_NEARER_BGR, _FARTHER_BGR)}.get(
                    int(relation), (_EQUAL_BGR, _EQUAL_BGR))
                for point, colour in zip((first, second), colours, strict=True):
                    cv2.circle(bgr, point, 4, colour, -1)
        if (frame.depth > 0).any():
            depth = np.where(frame.depth > 0, frame.depth, np.nan)
            return cls(name, bgr, _nearest(depth, size_wh))
        if frame.rel_inv_depth is not None:
            return cls(name, bgr, _nearest(_as_depth(frame.rel_inv_depth), size_wh), relative=True)
        other = _small(frame.views[0].rgb, size_wh) if frame.views else None
        return cls(name, bgr, other=other, pairs=frame.pairs is not None)

    def paint(self, depth_range: tuple[float, float] | None) -> NDArray[np.uint8]:
        """Put picture, depth and caption together."""
        if self.depth is not None and (self.relative or depth_range is not None):
            near, far = _RELATIVE_RANGE if self.relative or depth_range is None else depth_range
            right = colorize(self.depth, near, far)
        else:
            right = np.zeros_like(self.bgr) if self.other is None else self.other
        # the end of a long name tells more than its beginning
        text = self.name if len(self.name) <= 68 else f'...{self.name[-65:]}'
        return np.vstack([_caption(text, 2 * TILE_WIDTH_PX), np.hstack([self.bgr, right])])


def write_sheet(
    path: Path, tiles: list[Tile], depth_range: tuple[float, float] | None, unit: str
) -> None:
    """Write the sheet.

    Args:
        path: .jpg or .png; its folder is made.
        tiles: in the order of the sheet, row by row.
        depth_range: near and far end of the colours, the same for all; None where no tile has
            depth with a unit.
        unit: of that range.

    Raises:
        CommandError: it cannot be written.
    """
    painted = [tile.paint(depth_range) for tile in tiles]
    text = 'black: unknown'
    if depth_range is not None:
        text += f'; red to blue: {depth_range[0]:.3g} to {depth_range[1]:.3g} {unit}'
    if any(tile.relative for tile in tiles):
        text += '; relative inverse depth: red to blue near to far, each frame by itself'
    if any(tile.pairs for tile in tiles):
        text += '; points: red is nearer, blue is farther, green is equal'
    if any(tile.other is not None for tile in tiles):
        text += '; beside a picture: another of its scene'
    rows = [_caption(text, 2 * PAIRS_PER_ROW * TILE_WIDTH_PX)]
    for start in range(0, len(painted), PAIRS_PER_ROW):
        row = painted[start:start + PAIRS_PER_ROW]
        height = max(image.shape[0] for image in row)
        width = 2 * TILE_WIDTH_PX
        padded = [np.pad(image, ((0, height - image.shape[0]), (0, 0), (0, 0)),
                         constant_values=255) for image in row]
        padded += [np.full((height, width, 3), 255, np.uint8)] * (PAIRS_PER_ROW - len(row))
        rows.append(np.hstack(padded))
    done, data = cv2.imencode(path.suffix.lower(), np.vstack(rows))
    if not done:
        raise CommandError(f'{path}: the sheet could not be encoded')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def _caption(text: str, width: int) -> NDArray[np.uint8]:
    line = np.full((CAPTION_PX, width, 3), 255, np.uint8)
    # OpenCV's font knows ASCII only
    cv2.putText(line, text.encode('ascii', 'replace').decode(), (3, CAPTION_PX - 5),
                cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    return line


def _small(rgb: NDArray[np.uint8], size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return np.asarray(cv2.resize(bgr, size_wh, interpolation=cv2.INTER_AREA), np.uint8)


def _nearest(image: NDArray[np.floating], size_wh: tuple[int, int]) -> NDArray[np.float32]:
    small = cv2.resize(image.astype(np.float32), size_wh, interpolation=cv2.INTER_NEAREST)
    return np.asarray(small, np.float32)


def _as_depth(rel_inv_depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map a frame's 1st to 99th percentile of inverse depth to depths 10 to 1."""
    known = np.isfinite(rel_inv_depth)
    if not known.any():
        return np.full_like(rel_inv_depth, np.nan)
    low, high = np.percentile(rel_inv_depth[known], (1, 99))
    near, far = _RELATIVE_RANGE
    share = ((rel_inv_depth - low) / max(float(high - low), 1e-12)).clip(0, 1)
    return (1 / (1 / far + share * (1 / near - 1 / far))).astype(np.float32)

"""Frames on disk: tone mapping, checks, the folder layout, resume and the summary.

Layout: <root>/<split>/<scene>/<frame>.jpg, .depth.png (uint16, millimetres of planar Z, 0 =
unknown) and .json; a scene's folder appears only when the scene is complete.
"""

from __future__ import annotations

import json
from pathlib import Path
import shutil
from typing import Any

import cv2
from depth_node.synthesis.viewpoints import View, focal_px
import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1
SPLITS = ('train', 'val', 'test')
JPEG_QUALITY = 94
_HISTOGRAM_M = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 50.0)


def split_of(scene: int) -> str:
    """The split of a scene number: 2 of 25 scenes each for validation and test."""
    return {3: 'val', 16: 'val', 9: 'test', 22: 'test'}.get(scene % 25, 'train')


def scene_name(scene: int, kind: str) -> str:
    """Folder name of a scene."""
    return f'{kind}-{scene:06d}'


def tone_map(
    radiance: NDArray[np.float32], *, percentile: float, level: float
) -> NDArray[np.uint8]:
    """Expose linear radiance like a camera and encode it as sRGB.

    Args:
        radiance: (H, W, 3), linear, >= 0.
        percentile: the percentile of luminance that is brought to `level`.
        level: its linear value after exposure; above 0.7 a soft shoulder sets in.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    radiance = np.nan_to_num(np.maximum(radiance, 0), posinf=1e3)
    luminance = radiance @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    reference = max(float(np.percentile(luminance, percentile)), 1e-6)
    exposed = radiance * (level / reference)
    knee = 0.7
    over = np.maximum(exposed - knee, 0)
    shoulder = knee + (1 - knee) * (1 - np.exp(-over / (1 - knee)))
    x = np.where(exposed > knee, shoulder, exposed)
    encoded = np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-8) ** (1 / 2.4) - 0.055)
    return (np.clip(encoded, 0, 1) * 255 + 0.5).astype(np.uint8)


def depth_to_millimetres(depth_m: NDArray[np.float32]) -> NDArray[np.uint16]:
    """(H, W) metres to uint16 millimetres; 0 where not finite, not positive or over 65.5 m."""
    millimetres = np.rint(np.nan_to_num(depth_m, nan=0.0, posinf=0.0, neginf=0.0) * 1000.0)
    usable = (millimetres > 0) & (millimetres <= 65535)
    return np.where(usable, millimetres, 0).astype(np.uint16)


def frame_fault(rgb: NDArray[np.uint8], depth_m: NDArray[np.float32], kind: str) -> str:
    """Why a rendered frame is thrown away, '' when it is good."""
    valid = np.isfinite(depth_m)
    if valid.mean() < 0.6:
        return 'mostly background'
    nearest, spread = (0.2, 1.2) if kind == 'room' else (0.08, 1.1)
    low, high = np.percentile(depth_m[valid], [1, 99])
    if low < nearest:
        return 'too near'
    if high / low < spread:
        return 'flat'
    red, green, blue = (rgb[..., i].astype(int) for i in range(3))
    if ((red > 200) & (blue > 200) & (green < 60)).mean() > 0.01:
        return 'magenta'  # Blender's colour for a missing picture
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    if grey.mean() < 18:
        return 'dark'
    if grey.std() < 8:
        return 'empty'
    return ''


class SceneWriter:
    """Collects one scene's frames in a hidden folder and publishes them in one rename."""

    def __init__(self, root: Path, scene: int, kind: str) -> None:
        self.name = scene_name(scene, kind)
        self.folder = root / split_of(scene) / self.name
        self._partial = root / '.partial' / self.name
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._kind = kind
        self.frames = 0

    def add(self, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32], view: View) -> None:
        """Write one frame; K's principal point counts pixel centres as whole numbers."""
        stem = self._partial / f'{self.frames:03d}'
        height, width = depth_m.shape
        focal = focal_px(width, view.hfov_deg)
        cv2.imwrite(f'{stem}.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR),
                    [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        cv2.imwrite(f'{stem}.depth.png', depth_to_millimetres(depth_m))
        Path(f'{stem}.json').write_text(json.dumps({
            'fx': focal, 'fy': focal, 'cx': (width - 1) / 2, 'cy': (height - 1) / 2,
            'width': width, 'height': height, 'kind': self._kind,
            'camera_to_world': view.camera_to_world.tolist(),
            'height_m': view.position[2], 'pitch_deg': view.pitch_deg,
            'roll_deg': view.roll_deg, 'hfov_deg': view.hfov_deg,
        }))
        self.frames += 1

    def close(self, notes: dict[str, Any]) -> None:
        """Publish the scene with its notes (scene.json); also when it has no frame."""
        (self._partial / 'scene.json').write_text(json.dumps(notes))
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._partial.rename(self.folder)

    def discard(self) -> None:
        """Throw the unfinished scene away."""
        shutil.rmtree(self._partial, ignore_errors=True)


def finished_scenes(root: Path) -> set[int]:
    """Numbers of the scenes that are complete on disk."""
    return {
        int(path.parent.name.rpartition('-')[2])
        for split in SPLITS
        for path in root.glob(f'{split}/*/scene.json')
    }


def summarise(root: Path, settings: dict[str, Any], attribution: list[dict[str, str]]
              ) -> dict[str, Any]:
    """Count the frames of a data folder and write meta.json and contact_sheet.jpg.

    Args:
        root: the data folder.
        settings: what generated it (seed, size_hw and so on), copied into meta.json.
        attribution: the assets that were used, with creator and licence.
    """
    counts: dict[str, Any] = {}
    histogram = np.zeros(len(_HISTOGRAM_M) - 1, np.int64)
    frames = []
    for split in SPLITS:
        scenes = list(root.glob(f'{split}/*/scene.json'))
        paths = sorted(root.glob(f'{split}/*/*.depth.png'))
        frames += paths
        kinds = [path.parent.name.partition('-')[0] for path in paths]
        counts[split] = {'scenes': len(scenes), 'frames': len(paths),
                         'room': kinds.count('room'), 'table': kinds.count('table')}
    for path in frames[:: max(1, len(frames) // 400)]:
        depth = _read(path)[::4, ::4].astype(float) / 1000
        histogram += np.histogram(depth[depth > 0], _HISTOGRAM_M)[0]
    meta = {
        'version': FORMAT_VERSION, **settings, 'counts': counts,
        'depth': 'planar Z in millimetres, 0 = unknown or beyond 50 m',
        'camera_to_world': 'optical frame (x right, y down, z forward) to world (z up), metres',
        'depth_histogram': {'edges_m': list(_HISTOGRAM_M),
                            'share': (histogram / max(1, histogram.sum())).round(4).tolist()},
        'attribution': attribution,
    }
    temporary = root / '.meta.json'
    temporary.write_text(json.dumps(meta, indent=1))
    temporary.rename(root / 'meta.json')
    sheet = contact_sheet(frames)
    if sheet is not None:
        cv2.imwrite(str(root / 'contact_sheet.jpg'), sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return meta


def _read(path: Path) -> NDArray[Any]:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise OSError(f'{path}: missing or not readable; delete its scene folder and run the same '
                      'command again')
    return picture


def contact_sheet(depth_paths: list[Path], columns: int = 5, rows: int = 8
                  ) -> NDArray[np.uint8] | None:
    """A (H, W, 3) BGR sheet of evenly chosen frames, each beside its colour-coded depth."""
    if not depth_paths:
        return None
    chosen = [depth_paths[i] for i in
              np.linspace(0, len(depth_paths) - 1, columns * rows).astype(int)]
    tiles = []
    for path in chosen:
        picture = _read(Path(str(path).replace('.depth.png', '.jpg')))
        depth = _read(path).astype(np.float32)
        known = depth > 0
        low, high = np.percentile(1 / depth[known], [1, 99]) if known.any() else (0, 1)
        inverse = (1 / np.maximum(depth, 1) - low) / max(high - low, 1e-9)
        coded = cv2.applyColorMap((np.clip(inverse, 0, 1) * 255).astype(np.uint8),
                                  cv2.COLORMAP_TURBO)
        coded[~known] = 0
        pair = np.hstack([cv2.resize(picture, (192, 144)), cv2.resize(coded, (192, 144))])
        if known.any():
            near, far = np.percentile(depth[known], [1, 99]) / 1000
            cv2.putText(pair, f'{near:.2f}-{far:.2f} m', (196, 12), 0, 0.4, (255, 255, 255), 1)
        tiles.append(pair)
    return np.vstack([np.hstack(tiles[r * columns:(r + 1) * columns]) for r in range(rows)])

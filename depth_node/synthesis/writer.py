"""Frames on disk: tone mapping, checks, the folder layout, resume and the summary.

Layout: <root>/<split>/<scene>/<frame>.jpg, .depth.png (uint16, millimetres of planar Z, 0 =
unknown) and .json; with channels also .normal.png (see `normals_to_bytes`; RGB is x, y, z) and
.label.png (uint8, class index + 1, 0 = unknown). A scene's folder appears only when the scene is
complete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
import itertools
import json
from pathlib import Path
import shutil
from typing import Any

import cv2
from depth_node.synthesis.recipe import CLASSES, KINDS, LIMITS, RECIPE, SPLITS
from depth_node.synthesis.viewpoints import View, focal_px
import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 2
FAR = 50.0
MAX_SPECKLE = 0.02
JPEG_QUALITY = 94
_CAMERA_EDGES = {
    'hfov_deg': tuple(range(35, 100, 5)), 'height_m': (0, 0.2, 0.4, 0.7, 1.0, 1.3, 1.6, 2.0, 4.0),
    'pitch_deg': tuple(range(-90, 60, 15)),
}
_HISTOGRAM_M = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 50.0)


def split_of(scene: int) -> str:
    """The split of a scene number: 2 of 25 scenes each for validation and test."""
    return {3: 'val', 16: 'val', 9: 'test', 22: 'test'}.get(scene % 25, 'train')


def scenes_of(count: int, splits: Collection[str]) -> list[int]:
    """Those of the scene numbers below `count` that belong to the splits."""
    return [scene for scene in range(count) if split_of(scene) in splits]


def scene_name(scene: int, kind: str) -> str:
    """Folder name of a scene."""
    return f'{kind}-{scene:06d}'


def brightness(radiance: NDArray[np.float32], percentile: float) -> float:
    """A percentile of the luminance of (H, W, 3) linear radiance, by which to expose."""
    clean = np.nan_to_num(np.maximum(radiance, 0), posinf=1e3)
    luminance = clean @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    return max(float(np.percentile(luminance, percentile)), 1e-6)


def tone_map(
    radiance: NDArray[np.float32], *, level: float, reference: float
) -> NDArray[np.uint8]:
    """Expose linear radiance like a camera and encode it as sRGB.

    Args:
        radiance: (H, W, 3), linear, >= 0.
        level: what `reference` becomes; above 0.7 a soft shoulder sets in.
        reference: the luminance that is brought to `level` (see `brightness`).

    Returns:
        (H, W, 3) uint8 RGB.
    """
    radiance = np.nan_to_num(np.maximum(radiance, 0), posinf=1e3)
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


def normals_to_bytes(normals: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W, 3) unit vectors to bytes: 128 + 127 n, rounded; 0, 0, 0 where there is none."""
    stored = np.rint(128 + 127 * np.clip(normals, -1, 1)).astype(np.uint8)
    stored[~normals.any(-1)] = 0
    return stored


def plane_share(depth_m: NDArray[np.float32], tolerance: float = 0.01) -> float:
    """Share of the known pixels that the best plane explains to `tolerance` of their depth.

    A plane is linear in inverse depth. Tried are planes through triples of pixels (RANSAC,
    doi:10.1145/358669.358692, fixed seed); the best one is fitted again to what it explains.
    """
    coarse = depth_m[::4, ::4]
    known = np.isfinite(coarse)
    if known.sum() < 12:
        return 1.0
    rows, columns = np.nonzero(known)
    design = np.c_[rows, columns, np.ones(len(rows))].astype(float)
    inverse = 1 / coarse[known].astype(float)

    def explained(plane: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(np.abs(design @ plane / inverse - 1) < tolerance)

    rng = np.random.default_rng(0)
    best = np.zeros(len(inverse), bool)
    for _ in range(40):
        triple = rng.choice(len(inverse), 3, replace=False)
        if abs(np.linalg.det(design[triple])) > 1:
            found = explained(np.linalg.solve(design[triple], inverse[triple]))
            best = found if found.sum() > best.sum() else best
    if best.sum() >= 3:
        again = explained(np.linalg.lstsq(design[best], inverse[best], rcond=None)[0])
        best = again if again.sum() > best.sum() else best
    return float(best.mean())


def frame_fault(rgb: NDArray[np.uint8], depth_m: NDArray[np.float32], style: str) -> str:
    """Why a rendered frame is thrown away, '' when it is good.

    Args:
        rgb: (H, W, 3).
        depth_m: (H, W) [m], NaN = unknown.
        style: of `recipe.LIMITS`; the frame may come a fifth nearer than the probes did.
    """
    valid = np.isfinite(depth_m)
    if valid.mean() < 0.6:
        return 'mostly background'
    limits = LIMITS[style]
    low, high = np.percentile(depth_m[valid], [1, 99])
    if low < 0.7 * limits.nearest:
        return 'too near'
    if high / low < limits.spread:
        return 'flat'
    if plane_share(depth_m) > 0.93:
        return 'one plane'
    if speckle_share(depth_m) > MAX_SPECKLE:
        return 'speckled depth'
    red, green, blue = (rgb[..., i].astype(int) for i in range(3))
    if ((red > 200) & (blue > 200) & (green < 60)).mean() > 0.01:
        return 'magenta'  # Blender's colour for a missing picture
    if (rgb.min(-1) > 250).mean() > 0.4:
        return 'burnt out'
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    if grey.mean() < 14:
        return 'dark'
    if grey.std() < 8:
        return 'empty'
    return ''


def speckle_share(depth_m: NDArray[np.float32]) -> float:
    """Share of the pixels whose depth differs by a fifth from all of their 8 neighbours.

    Glass and hair-thin things do that; one such pixel in a clean surface does not matter.
    """
    depth = np.nan_to_num(depth_m, nan=FAR)
    kernel = np.ones((3, 3), np.uint8)
    kernel[1, 1] = 0
    below, above = cv2.erode(depth, kernel), cv2.dilate(depth, kernel)
    return float(((depth < 0.8 * below) | (depth > 1.25 * above)).mean())


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

    def add(
        self, rgb: NDArray[np.uint8], depth_m: NDArray[np.float32], view: View, *,
        normals: NDArray[np.float32] | None = None, labels: NDArray[np.uint8] | None = None,
        sequence: tuple[int, int] | None = None,
    ) -> None:
        """Write one frame; K's principal point counts pixel centres as whole numbers.

        Args:
            rgb: (H, W, 3).
            depth_m: (H, W).
            view: its camera.
            normals: (H, W, 3), written when given.
            labels: (H, W), written when given.
            sequence: number of the camera motion and place in it.
        """
        stem = self._partial / f'{self.frames:03d}'
        height, width = depth_m.shape
        focal = focal_px(width, view.hfov_deg)
        cv2.imwrite(f'{stem}.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR),
                    [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        cv2.imwrite(f'{stem}.depth.png', depth_to_millimetres(depth_m))
        if normals is not None:
            cv2.imwrite(f'{stem}.normal.png', np.ascontiguousarray(
                normals_to_bytes(normals)[..., ::-1]))
        if labels is not None:
            cv2.imwrite(f'{stem}.label.png', labels)
        place = {} if sequence is None else {'sequence': sequence[0], 'step': sequence[1]}
        Path(f'{stem}.json').write_text(json.dumps({
            'fx': focal, 'fy': focal, 'cx': (width - 1) / 2, 'cy': (height - 1) / 2,
            'width': width, 'height': height, 'kind': self._kind,
            'camera_to_world': view.camera_to_world.tolist(),
            'height_m': view.position[2], 'pitch_deg': view.pitch_deg,
            'roll_deg': view.roll_deg, 'hfov_deg': view.hfov_deg, **place,
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
    """Count the frames of a data folder; write meta.json, card.md and contact_sheet.jpg.

    Args:
        root: the data folder.
        settings: what generated it (seed, size_hw and so on), copied into meta.json.
        attribution: the assets that were used, with creator and licence.
    """
    counts: dict[str, Any] = {}
    faults: Counter[str] = Counter()
    frames = []
    for split in SPLITS:
        scenes = list(root.glob(f'{split}/*/scene.json'))
        for path in scenes:
            faults.update(json.loads(path.read_text()).get('faults', {}))
        paths = sorted(root.glob(f'{split}/*/*.depth.png'))
        frames += paths
        kinds = Counter(path.parent.name.partition('-')[0] for path in paths)
        counts[split] = {'scenes': len(scenes), 'frames': len(paths),
                         **{kind: kinds[kind] for kind in KINDS if kinds[kind]}}
    meta = {
        'version': FORMAT_VERSION, 'recipe': RECIPE, **settings, 'counts': counts,
        'depth': 'planar Z in millimetres, 0 = unknown or beyond 50 m',
        'camera_to_world': 'optical frame (x right, y down, z forward) to world (z up), metres',
        'classes': list(CLASSES),
        **_histograms(frames),
        'thrown_away': dict(faults.most_common()),
        'attribution': attribution,
    }
    for name, text in (('meta.json', json.dumps(meta, indent=1)), ('card.md', card(meta))):
        temporary = root / f'.{name}'
        temporary.write_text(text)
        temporary.rename(root / name)
    sheet = contact_sheet(_spread(frames))
    if sheet is not None:
        cv2.imwrite(str(root / 'contact_sheet.jpg'), sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return meta


def _histograms(frames: list[Path]) -> dict[str, Any]:
    """Shares of depth over the pixels, and of camera angles and heights over the frames."""
    pixels = np.zeros(len(_HISTOGRAM_M) - 1, np.int64)
    for path in frames[:: max(1, len(frames) // 400)]:
        depth = _read(path)[::4, ::4].astype(float) / 1000
        pixels += np.histogram(depth[depth > 0], _HISTOGRAM_M)[0]
    found: dict[str, list[float]] = {key: [] for key in _CAMERA_EDGES}
    for path in frames:
        info = json.loads(Path(str(path).replace('.depth.png', '.json')).read_text())
        for key in found:
            found[key].append(float(info[key]))
    histograms: dict[str, Any] = {
        'depth_histogram': {'edges_m': list(_HISTOGRAM_M), 'share': _shares(pixels)}}
    for key, edges in _CAMERA_EDGES.items():
        count = np.histogram(found[key], edges)[0]
        histograms[f'{key}_histogram'] = {'edges': list(edges), 'share': _shares(count)}
    return histograms


def _shares(count: NDArray[np.int64]) -> list[float]:
    return [float(v) for v in (count / max(1, count.sum())).round(4)]


def card(meta: dict[str, Any]) -> str:
    """The data set's card as a Markdown document."""
    lines = ['# Rendered frames with true depth', '',
             f'Recipe {meta["recipe"]} of `depth-node synthesize`, renderer '
             f'{meta.get("generator", {}).get("renderer", "cycles")}, seed {meta.get("seed")}, '
             f'size {meta.get("size_hw")} (height, width). Splits share no scene.', '',
             '| Split | scenes | frames | ' + ' | '.join(KINDS) + ' |',
             '|---' * (len(KINDS) + 3) + '|']
    for split, count in meta['counts'].items():
        cells = [count['scenes'], count['frames'], *(count.get(kind, 0) for kind in KINDS)]
        lines.append(f'| {split} | ' + ' | '.join(str(cell) for cell in cells) + ' |')
    titles = {'depth': ('Depth of the pixels', 'm', 'edges_m'),
              'hfov_deg': ('Horizontal field of view', 'deg', 'edges'),
              'height_m': ('Camera above the floor', 'm', 'edges'),
              'pitch_deg': ('Pitch, up is positive', 'deg', 'edges')}
    for key, (title, unit, edges_key) in titles.items():
        histogram = meta[f'{key}_histogram']
        edges = histogram[edges_key]
        lines += ['', f'## {title}', '', f'| {unit} | share |', '|---|---|']
        lines += [f'| {a:g} to {b:g} | {share:.1%} |'
                  for (a, b), share in zip(itertools.pairwise(edges), histogram['share'],
                                           strict=True)]
    lines += ['', '## Thrown away after rendering', '']
    lines += [f'- {name}: {count}' for name, count in meta['thrown_away'].items()] or ['- none']
    credits = Counter(row['licence'] for row in meta['attribution'])
    lines += ['', '## Attribution', '',
              'Furniture of the Sweet Home 3D libraries: '
              + (', '.join(f'{count} models {name}' for name, count in sorted(credits.items()))
                 or 'none')
              + '. Authors and names are in meta.json; `depth-node synthesize --attribution` '
              'writes the notice that CC-BY asks for.', '']
    return '\n'.join(lines)


def _spread(frames: list[Path], count: int = 40) -> list[Path]:
    """About `count` frames with all kinds of scenes among them, kinds together."""
    kinds: dict[str, list[Path]] = {}
    for path in frames:
        kinds.setdefault(path.parent.name.partition('-')[0], []).append(path)
    chosen = []
    for kind in sorted(kinds):
        paths = kinds[kind]
        wanted = max(1, round(count * len(paths) / len(frames)))
        chosen += [paths[i] for i in np.linspace(0, len(paths) - 1, wanted).astype(int)]
    return chosen


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

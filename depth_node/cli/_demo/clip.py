"""The demo's clip on disk: pictures, true depth and the camera."""

from __future__ import annotations

from dataclasses import dataclass, field
import functools
import json
from pathlib import Path
from typing import Any

from depth_node.camera import Camera, CameraError
from depth_node.images import ImageError, depth_from_16uc1
from depth_node.model_card import share_folders
import numpy as np
from numpy.typing import NDArray

DEPTH_SUFFIX = '.depth.png'
PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png')


class ClipError(ValueError):
    """There is no clip there, or not a usable one."""


@dataclass(frozen=True)
class Clip:
    """Pictures in their order, and their true depth.

    Attributes:
        folder: where it lies.
        pictures: one file per frame.
        true_depths: one uint16 PNG [mm, 0 = unknown] per frame; empty where the clip has none.
        camera: intrinsics of the pictures' size.
        notes: `clip.json`: how the clip was made; `camera_to_world`, a (4, 4) transform per frame
            from the optical frame to a world with z up, where known.
    """

    folder: Path
    pictures: tuple[Path, ...]
    true_depths: tuple[Path, ...]
    camera: Camera
    notes: dict[str, Any] = field(default_factory=dict)

    def true_depth(self, index: int) -> NDArray[np.float32]:
        """Return the true depth of a frame, metres, NaN unknown.

        It is of the picture's size, or of every `step`-th pixel of every `step`-th row.

        Raises:
            ClipError: the file cannot be read, or has no such size.
        """
        depth = _read_depth(self.true_depths[index])
        step = self.camera.size_hw[0] // max(1, depth.shape[0])
        if step < 1 or depth.shape != tuple(-(-side // step) for side in self.camera.size_hw):
            raise ClipError(f'{self.true_depths[index]}: {depth.shape[1]}x{depth.shape[0]}, '
                            f'expected the size of the pictures ({self.camera.size_hw[1]}x'
                            f'{self.camera.size_hw[0]}), or every n-th pixel of it')
        return depth

    def poses(self) -> NDArray[np.float64] | None:
        """Return (N, 4, 4) transforms from the optical frame to the world, None if not known."""
        poses = np.asarray(self.notes.get('camera_to_world', ()), np.float64)
        return poses if poses.shape == (len(self.pictures), 4, 4) else None

    def range_m(self) -> tuple[float, float]:
        """Return the nearest and farthest true depth, without the outermost hundredths, metres."""
        some = self.true_depths[::max(1, len(self.true_depths) // 12)]
        values = np.concatenate([_read_depth(path)[::4, ::4].ravel() for path in some])
        values = values[np.isfinite(values)]
        if values.size == 0:
            raise ClipError(f'{self.folder}: the true depth holds no known pixel')
        near, far = np.percentile(values, (1, 99))
        return float(near), float(max(far, near * 1.1))


@functools.lru_cache(maxsize=64)
def _read_depth(path: Path) -> NDArray[np.float32]:
    import cv2

    millimetres = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if millimetres is None:
        raise ClipError(f'{path}: not a readable PNG')
    try:
        return depth_from_16uc1(millimetres)
    except ImageError as error:
        raise ClipError(f'{path}: {error}') from error


def load_clip(folder: Path) -> Clip:
    """Read a clip's folder.

    It holds `camera.yaml` (as camera_calibration writes it), the pictures, sorted by name, and
    for each picture `<stem>.depth.png`, or none of these. `clip.json` may say how it was made.

    Raises:
        ClipError: something is missing; the text says what.
    """
    if not folder.is_dir():
        raise ClipError(f'{folder}: there is no such folder')
    pictures = tuple(sorted(
        path for path in folder.iterdir()
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.endswith(DEPTH_SUFFIX)))
    if not pictures:
        raise ClipError(f'{folder}: no picture ({", ".join(PICTURE_SUFFIXES)}) in it')
    depths = [path.with_name(path.stem + DEPTH_SUFFIX) for path in pictures]
    there = [path.is_file() for path in depths]
    if any(there) and not all(there):
        raise ClipError(f'{depths[there.index(False)]}: missing, while other pictures have their '
                        'true depth')
    try:
        camera = Camera.from_yaml(folder / 'camera.yaml')
    except CameraError as error:
        raise ClipError(str(error)) from error
    notes: dict[str, Any] = {}
    if (folder / 'clip.json').is_file():
        try:
            notes = json.loads((folder / 'clip.json').read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise ClipError(f'{folder / "clip.json"}: {error}') from error
    return Clip(folder, pictures, tuple(depths) if all(there) else (), camera, notes)


def bundled_clip() -> Path:
    """Return the folder of the clip that comes with the package.

    Raises:
        ClipError: it is not installed.
    """
    return shared_file('demo/clip', 'it is a part of the repository and of an installation by '
                                    'colcon or pip; name another by --clip')


def shared_file(name: str, advice: str) -> Path:
    """Return a file or folder of `share/depth_node`, or of the checkout.

    Args:
        name: path in the checkout, and below the share folder.
        advice: what to do where it is not found.

    Raises:
        ClipError: it is nowhere.
    """
    places = share_folders()
    for place in places:
        if (place / name).exists():
            return place / name
    raise ClipError(f'{name} was not found below {", ".join(dict.fromkeys(map(str, places)))}: '
                    f'{advice}')

"""Hypersim: rendered rooms whose files hold the distance to the camera, not depth.

Layout: <root>/<scene>/images/scene_cam_XX_final_preview/frame.NNNN.tonemap.jpg and
scene_cam_XX_geometry_hdf5/frame.NNNN.depth_meters.hdf5 with the data set `dataset`: metres along
the ray, NaN = unknown. Split: metadata_images_split_scene_v1.csv of the publishers, or by scene.
"""

from __future__ import annotations

from collections.abc import Sequence
import csv
from fnmatch import fnmatch
import io
from pathlib import Path

from depth_node.camera import Camera
from depth_node.training.datasets.base import (
    AbsentSplitError,
    DatasetError,
    DepthDataset,
    check_split,
    clean_depth,
    read_bytes,
    read_rgb,
)
from depth_node.training.frame import Frame
import numpy as np
from numpy.typing import NDArray

SPLIT_CSV = 'metadata_images_split_scene_v1.csv'
# Of the 1024x768 pictures. A few scenes were rendered with a shifted lens, for which no pinhole
# is exact; published training uses this focal length for all.
_FOCAL_PX, _FOCAL_WIDTH_PX = 886.81, 1024
_COLUMNS = ('scene_name', 'camera_name', 'frame_id', 'included_in_public_release',
            'split_partition_name')  # fmt: skip


class Hypersim(DepthDataset):
    """Frames of Hypersim with planar depth."""

    kind = 'hypersim'

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        split_csv: str | None = None,
        val_scenes: Sequence[str] | None = None,
        test_scenes: Sequence[str] | None = None,
        max_depth_m: float | None = None,
    ) -> None:
        """Index a split.

        Args:
            root: the folder of the scenes.
            split: train, val or test.
            split_csv: the publishers' table; None = the one in `root`. Its frames that are not
                included in the public release are left out.
            val_scenes: patterns of scenes for validation, instead of the table.
            test_scenes: patterns of scenes for the test, instead of the table; all others are
                for training.
            max_depth_m: deeper values are unknown; None = no limit.

        Raises:
            DatasetError: no table and no patterns, a table of another kind, or no frame.
        """
        check_split(split)
        super().__init__(root, split)
        self._far = np.inf if max_depth_m is None else max_depth_m
        self.note = 'Hypersim, rendered; distance turned into depth by the pinhole of 886.81 px'
        if val_scenes is not None or test_scenes is not None:
            if split_csv is not None:
                raise DatasetError(
                    f'split_csv {split_csv} and val_scenes or test_scenes: give one of the two'
                )
            self._items = self._by_scene({'val': val_scenes or (), 'test': test_scenes or ()})
        else:
            table = Path(split_csv) if split_csv else self.root / SPLIT_CSV
            if split_csv is None and not table.is_file():
                raise DatasetError(
                    f'{table}: no such file; download it from the evaluation/analysis folder of '
                    'the publishers, name another by split_csv, or split by val_scenes and '
                    'test_scenes'
                )
            self._items = self._by_table(table)

    def _by_scene(self, patterns: dict[str, Sequence[str]]) -> list[tuple[Path, str, str]]:
        items = []
        pictures = self.root.glob('*/images/scene_cam_*_final_preview/frame.*.tonemap.jpg')
        scenes = set()
        for path in sorted(pictures):
            scene = path.parents[2]
            scenes.add(scene.name)
            own = (s for s in patterns if any(fnmatch(scene.name, p) for p in patterns[s]))
            if next(own, 'train') == self.split:
                camera = path.parent.name.removeprefix('scene_').removesuffix('_final_preview')
                items.append((scene, camera, path.name.split('.')[1]))
        if not items:
            raise AbsentSplitError(
                f'{self.root}: no <scene>/images/scene_cam_XX_final_preview/frame.*.tonemap.jpg '
                f'in split {self.split}; there are {len(scenes)} scenes with pictures'
            )
        return items

    def _by_table(self, path: Path) -> list[tuple[Path, str, str]]:
        text = read_bytes(path).decode('utf-8-sig', errors='replace')
        items, absent = [], 0
        on_disk: dict[str, bool] = {}
        try:
            reader = csv.DictReader(io.StringIO(text, newline=''))
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DatasetError(
                    f'{path}: no column {missing[0]}; expected {", ".join(_COLUMNS)}'
                )
            for row in reader:
                scene, camera, frame, included, partition = (row[name] or '' for name in _COLUMNS)
                if partition != self.split or included.lower() != 'true':
                    continue
                if scene not in on_disk:
                    on_disk[scene] = bool(scene) and (self.root / scene / 'images').is_dir()
                if not on_disk[scene]:  # people download a part of the 1.9 TB
                    absent += 1
                    continue
                if not frame.isdigit():
                    raise DatasetError(
                        f'{path}, line {reader.line_num}: frame_id {frame!r}, expected a number'
                    )
                items.append((self.root / scene, camera, f'{int(frame):04d}'))
        except (csv.Error, ValueError, OSError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(
                f'{path}: not a table of comma-separated values: {error}'
            ) from error
        if not items:
            raise AbsentSplitError(
                f'{path}: no frame of split {self.split} lies in {self.root} '
                f'({absent} frames are of scenes that are not there)'
            )
        if absent:
            self.note += f'; {absent} listed frames are of scenes that are not on disk'
        return items

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._items)

    def name(self, index: int) -> str:
        """Name a frame: scene, camera, number."""
        scene, camera, frame = self._items[index]
        return f'{scene.name} {camera} {frame}'

    def files(self, index: int) -> tuple[Path, ...]:
        """List picture and distances."""
        scene, camera, frame = self._items[index]
        images = scene / 'images'
        return (
            images / f'scene_{camera}_final_preview' / f'frame.{frame}.tonemap.jpg',
            images / f'scene_{camera}_geometry_hdf5' / f'frame.{frame}.depth_meters.hdf5',
        )

    def read(self, index: int) -> Frame:
        """Read a frame."""
        picture, geometry = self.files(index)
        rgb = read_rgb(picture)
        size_hw = rgb.shape[0], rgb.shape[1]
        focal = _FOCAL_PX * size_hw[1] / _FOCAL_WIDTH_PX
        camera = Camera(size_hw, focal, focal, (size_hw[1] - 1) / 2, (size_hw[0] - 1) / 2)
        distance = _read_distance(geometry)
        if distance.shape == size_hw:
            distance = depth_from_distance(distance, camera)
        return Frame(
            rgb=rgb, depth=clean_depth(distance, geometry, size_hw, far=self._far), camera=camera
        )


def depth_from_distance(distance: NDArray[np.floating], camera: Camera) -> NDArray[np.float32]:
    """Turn ray lengths into depth along the optical axis: Z = r / |K^-1 (u, v, 1)|.

    Args:
        distance: (H, W) from the camera's centre [m].
        camera: undistorted, of that size.

    Returns:
        (H, W) metres, NaN where the distance is.
    """
    height, width = camera.size_hw
    x = (np.arange(width, dtype=np.float32) - camera.cx) / camera.fx
    y = (np.arange(height, dtype=np.float32) - camera.cy) / camera.fy
    length = np.sqrt(1 + x[None] ** 2 + y[:, None] ** 2)
    return np.asarray(distance.astype(np.float32) / length, np.float32)


def _read_distance(path: Path) -> NDArray[np.floating]:
    import h5py

    data = read_bytes(path)
    try:
        with h5py.File(io.BytesIO(data), 'r') as file:
            item = file.get('dataset')
            if not isinstance(item, h5py.Dataset) or item.dtype.kind != 'f' or item.ndim != 2:
                raise DatasetError(
                    f'{path}: no two-dimensional array of floats named `dataset`; expected a '
                    'depth_meters file of Hypersim'
                )
            return np.asarray(item[()])
    except DatasetError:
        raise
    except Exception as error:  # h5py raises whatever the damaged structure leads it to
        raise DatasetError(
            f'{path}: not a readable HDF5 file ({len(data)} bytes): {error}; download it again'
        ) from error


def recognise(path: Path) -> str | None:
    """Say why a folder looks like Hypersim, or None."""
    found = next(path.glob('*/images/scene_cam_*_geometry_hdf5'), None) if path.is_dir() else None
    if found is None:
        return None
    return f'Hypersim: {found.parents[1].name}/images/{found.name}'

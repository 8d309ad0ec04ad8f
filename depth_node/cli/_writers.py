"""Files that the verbs write: depth PNG and NPY, pictures, PLY clouds, videos.

Every file appears under its name when it is complete, or not at all: an interrupted run leaves no
half of one behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import tempfile
from typing import Any

import cv2
from depth_node.images import depth_to_16uc1
import numpy as np
from numpy.typing import NDArray


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a name in the same folder to write to; it becomes `path` if the block succeeds.

    The folder is made. The name keeps the suffix, which some writers decide by.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f'.{path.stem}.', suffix=f'.part{path.suffix}')
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp gives the owner alone access
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes | memoryview) -> Path:
    """Write a file at once."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 file at once."""
    return write_bytes(path, text.encode())


def write_image(path: Path, bgr: NDArray[Any]) -> Path:
    """Write a picture in the format of the suffix.

    Args:
        path: .png, .jpg or what else OpenCV writes.
        bgr: (H, W, 3) uint8, (H, W) uint8 or, as PNG, (H, W) uint16.

    Raises:
        OSError: OpenCV cannot write this.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix.lower() in ('.jpg', '.jpeg') else []
    try:
        done, blob = cv2.imencode(path.suffix, bgr, options)
    except cv2.error as error:
        raise OSError(f'{path}: {error}') from error
    if not done:
        raise OSError(f'{path}: OpenCV cannot write this picture')
    return write_bytes(path, blob.data)


def write_depth_png(path: Path, depth_m: NDArray[np.float32]) -> Path:
    """Write depth as a 16-bit PNG, whole millimetres, 0 = unknown or beyond 65.535 m."""
    return write_image(path, depth_to_16uc1(depth_m))


def write_npy(path: Path, values: NDArray[Any]) -> Path:
    """Write an array as NumPy's own file; depth keeps its NaN and Inf."""
    with atomic_path(path) as temporary, temporary.open('wb') as stream:
        np.save(stream, values, allow_pickle=False)
    return path


def write_ply(
    path: Path, points: NDArray[np.float32], rgb: NDArray[np.uint8] | None = None
) -> int:
    """Write a point cloud as binary PLY, as CloudCompare, MeshLab, Open3D and Blender read it.

    Args:
        path: the file.
        points: (..., 3) or more columns: x, y, z [m]. Points that are not finite are left out.
        rgb: (..., 3) colours of the same leading shape.

    Returns:
        How many points were written.

    Raises:
        ValueError: points and colours do not belong together.
    """
    if rgb is not None and rgb.shape[:-1] != points.shape[:-1]:
        raise ValueError(f'{path}: colours {rgb.shape} for points {points.shape}')
    xyz = points.reshape(-1, points.shape[-1])[:, :3]
    finite = np.isfinite(xyz).all(axis=1)
    fields: list[tuple[str, str]] = [('x', '<f4'), ('y', '<f4'), ('z', '<f4')]
    if rgb is not None:
        fields += [('red', 'u1'), ('green', 'u1'), ('blue', 'u1')]
    vertices = np.empty(int(np.count_nonzero(finite)), fields)
    for column, name in enumerate('xyz'):
        vertices[name] = xyz[finite, column]
    if rgb is not None:
        colours = rgb.reshape(-1, 3)[finite]
        for column, name in enumerate(('red', 'green', 'blue')):
            vertices[name] = colours[:, column]
    kinds = {'<f4': 'float', 'u1': 'uchar'}
    header = ['ply', 'format binary_little_endian 1.0',
              'comment metres, camera optical frame: x right, y down, z forward',
              f'element vertex {len(vertices)}',
              *(f'property {kinds[kind]} {name}' for name, kind in fields), 'end_header']
    with atomic_path(path) as temporary, temporary.open('wb') as stream:
        stream.write(('\n'.join(header) + '\n').encode('ascii'))
        stream.write(vertices.tobytes())
    return len(vertices)


def side_by_side(rgb: NDArray[np.uint8], depth_bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put a picture and its coloured depth, of the same size, beside each other; bgr."""
    return np.concatenate([rgb[..., ::-1], depth_bgr], axis=1)


class VideoFile:
    """A video that is written frame by frame and appears under its name when it is closed.

    `with VideoFile(path, fps) as video: video.add(bgr)`. Frames of another size than the first
    are fitted into its size, with black bars. Leaving the block by an exception removes the file.

    Attributes:
        path: where the video will be: the name that was asked for, or the same with .avi where
            OpenCV has no MPEG-4 encoder (it always has Motion JPEG).
        frames: how many were added.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.frames = 0
        self._fps = fps if 0 < fps <= 1000 else 25.0  # some containers say 0 or 90000
        self._writer: cv2.VideoWriter | None = None
        self._temporary = path
        self._size_wh = (0, 0)

    def add(self, bgr: NDArray[np.uint8]) -> None:
        """Append a frame, (H, W, 3).

        Raises:
            OSError: the file cannot be written.
        """
        if self._writer is None:
            self._begin((bgr.shape[1], bgr.shape[0]))
        assert self._writer is not None  # _begin raises otherwise
        self._writer.write(_fitted(bgr, self._size_wh))
        self.frames += 1

    def close(self) -> None:
        """Finish the video; without a frame there is none.

        Raises:
            OSError: nothing was written (OpenCV tells no reason; a full disk is the usual one).
        """
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            if not self._temporary.is_file() or self._temporary.stat().st_size == 0:
                self._temporary.unlink(missing_ok=True)
                raise OSError(f'{self.path}: the video could not be written; is the disk full?')
            os.replace(self._temporary, self.path)

    def discard(self) -> None:
        """Remove what was written."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _begin(self, size_wh: tuple[int, int]) -> None:
        # MPEG-4 wants even sides
        self._size_wh = (max(2, size_wh[0] & ~1), max(2, size_wh[1] & ~1))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for suffix, codec in ((self.path.suffix, 'mp4v'), ('.avi', 'MJPG')):
            if suffix == '.avi' and codec == 'mp4v':
                continue
            path = self.path.with_suffix(suffix)
            temporary = path.with_name(f'.{path.stem}.{os.getpid()}.part{suffix}')
            writer = cv2.VideoWriter(
                str(temporary), cv2.VideoWriter.fourcc(*codec), self._fps, self._size_wh)
            if writer.isOpened():
                self.path, self._temporary, self._writer = path, temporary, writer
                return
            writer.release()
            temporary.unlink(missing_ok=True)
        raise OSError(f'{self.path}: OpenCV cannot write a video here (no encoder, or the folder '
                      'is not writable)')


def _fitted(bgr: NDArray[np.uint8], size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """Bring a frame to a size: cut one odd row or column, or scale it and add bars."""
    height, width = bgr.shape[:2]
    if (width & ~1, height & ~1) == size_wh:
        return np.ascontiguousarray(bgr[:size_wh[1], :size_wh[0]])
    share = min(size_wh[0] / width, size_wh[1] / height)
    inner = (max(1, round(width * share)), max(1, round(height * share)))
    canvas: NDArray[np.uint8] = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    u0, v0 = (size_wh[0] - inner[0]) // 2, (size_wh[1] - inner[1]) // 2
    canvas[v0:v0 + inner[1], u0:u0 + inner[0]] = cv2.resize(
        bgr, inner, interpolation=cv2.INTER_AREA if share < 1 else cv2.INTER_LINEAR)
    return canvas

"""Consecutive video frames side by side, as SfMLearner's preparation script writes them.

Layout: <root>/train.txt and val.txt with lines '<folder> <frame>'; <root>/<folder>/<frame>.jpg, an
odd number of pictures of one size beside each other, in the order of time; and
<root>/<folder>/<frame>_cam.txt with the nine numbers of K, row by row, of one picture. The picture
in the middle is the frame, the others are its views; nothing is known about depth and motion.

The script scales K by cx' = cx s, which puts the centre of an enlarged or reduced picture off by
(s - 1) / 2 px; K is taken as it stands.
"""

from __future__ import annotations

from pathlib import Path

from depth_node.camera import Camera, CameraError
from depth_node.training.datasets.base import (
    AbsentSplitError,
    DatasetError,
    DepthDataset,
    check_split,
    read_bytes,
    read_rgb,
)
from depth_node.training.frame import Frame, View
import numpy as np

SPLITS = ('train', 'val')
# A principal point outside of the middle half is that of another size, or of the whole strip.
CENTRE_SHARES = (0.25, 0.75)


class SfmTriptych(DepthDataset):
    """Frames of video with their neighbours, without depth."""

    kind = 'sfm_triptych'
    metric = False
    has_camera = True
    note = 'no depth: video frames with their neighbours, prepared as for SfMLearner'

    def __init__(self, root: Path, split: str, *, length: int = 3) -> None:
        """Read the list of a split.

        Args:
            root: the folder with train.txt and val.txt.
            split: train or val.
            length: pictures side by side: 3, or 5 as for the pose benchmark.

        Raises:
            AbsentSplitError: no list of that split.
            DatasetError: an empty list, or a line that is not '<folder> <frame>'.
            ValueError: an impossible length.
        """
        super().__init__(root, split)
        check_split(split, SPLITS)
        if length < 3 or length % 2 == 0:
            raise ValueError(f'length {length}: expected an odd number of pictures, 3 or more')
        self.length = length
        path = self.root / f'{split}.txt'
        if not path.is_file():
            raise AbsentSplitError(
                f"{path}: no such list; expected lines '<folder> <frame>', as SfMLearner's "
                'preparation script writes them'
            )
        text = _text(path)
        self._names: list[tuple[str, str]] = []
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words:
                continue
            if len(words) != 2 or '\0' in line:
                raise DatasetError(
                    f"{path}, line {number}: {line.strip()[:60]!r}, expected '<folder> <frame>'"
                )
            self._names.append((words[0], words[1]))
        if not self._names:
            raise DatasetError(f"{path}: empty; expected lines '<folder> <frame>'")

    def __len__(self) -> int:
        """Count the frames."""
        return len(self._names)

    def name(self, index: int) -> str:
        """Name a frame."""
        return '/'.join(self._names[index])

    def files(self, index: int) -> tuple[Path, ...]:
        """List the strip of pictures and the file of K."""
        folder, frame = self._names[index]
        return self.root / folder / f'{frame}.jpg', self.root / folder / f'{frame}_cam.txt'

    def read(self, index: int) -> Frame:
        """See `DepthDataset.read`."""
        strip_path, camera_path = self.files(index)
        strip = read_rgb(strip_path)
        height, width = strip.shape[0], strip.shape[1] // self.length
        if strip.shape[1] % self.length or width < 1:
            raise DatasetError(
                f'{strip_path}: {strip.shape[1]} pixels wide, expected {self.length} pictures '
                'side by side; set data.options.length to how many there are'
            )
        camera = _read_camera(camera_path, (height, width))
        pictures = [
            np.ascontiguousarray(strip[:, at * width : (at + 1) * width])
            for at in range(self.length)
        ]
        middle = self.length // 2
        views = tuple(
            View(picture, camera, kind='previous' if at < middle else 'next')
            for at, picture in enumerate(pictures)
            if at != middle
        )
        nothing = np.zeros((height, width), np.float32)
        return Frame(pictures[middle], nothing, camera, views=views)


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode('utf-8')
    except UnicodeDecodeError as error:
        raise DatasetError(f'{path}: not a text file ({error})') from error


def _read_camera(path: Path, size_hw: tuple[int, int]) -> Camera:
    words = _text(path).replace(',', ' ').split()
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise DatasetError(f'{path}: {error}; expected the nine numbers of K') from error
    if len(numbers) != 9:
        raise DatasetError(f'{path}: {len(numbers)} numbers, expected the nine of K, row by row')
    fx, skew, cx, zero, fy, cy, *last = numbers
    if [skew, zero, *last] != [0, 0, 0, 0, 1]:
        raise DatasetError(
            f'{path}: {numbers}, expected fx 0 cx, 0 fy cy, 0 0 1 (no skew, row by row)'
        )
    try:
        camera = Camera(size_hw, fx, fy, cx, cy)
    except CameraError as error:
        raise DatasetError(f'{path}: {error}') from error
    low, high = CENTRE_SHARES
    if not (low <= cx / size_hw[1] <= high and low <= cy / size_hw[0] <= high):
        raise DatasetError(
            f'{path}: principal point ({cx:g}, {cy:g}) in a picture of {size_hw[1]}x{size_hw[0]}; '
            'K must belong to one picture of the strip at its size; prepare the data again'
        )
    return camera


def recognise(path: Path) -> str | None:
    """Say why a folder is of this kind; None when it is not."""
    for split in SPLITS:
        names = path / f'{split}.txt'
        if names.is_file():
            with names.open('rb') as stream:
                words = stream.readline(4096).decode('utf-8', 'replace').split()
            if len(words) == 2 and '\0' not in ''.join(words):
                camera = path / words[0] / f'{words[1]}_cam.txt'
                if camera.is_file():
                    return f'{split}.txt names {camera.relative_to(path)}'
    return None

"""ReDWeb: stereo pictures from the web with dense inverse depth up to scale and shift.

Imgs/<name>.jpg and RDs/<name>.png, one grey value a pixel, larger = nearer (Xian et al. 2018).
The type of the PNG and the meaning of 0 (here: farthest, known) are unverified.
"""

from __future__ import annotations

from pathlib import Path

from depth_node.training.datasets._shared import divide
from depth_node.training.datasets.base import DatasetError, DepthDataset, read_png, read_rgb
from depth_node.training.frame import Frame
import numpy as np

FOLDERS = ('Imgs', 'RDs')


class ReDWeb(DepthDataset):
    """Pictures with `rel_inv_depth`; no depth in any unit, no camera."""

    kind = 'redweb'
    metric = False
    has_camera = False
    note = 'inverse depth up to scale and shift, from optical flow between stereo pictures'

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        bits: int = 8,
        val: str = 'held_out',
        val_share: float = 0.05,
    ) -> None:
        """List the pictures.

        Args:
            root: the folder with Imgs and RDs, or the one above ReDWeb_V1.
            split: train or val; the data set has no test part.
            bits: of a value in RDs, 8 or 16.
            val: 'held_out' takes pictures away from training, the data set has one part only.
            val_share: about this part of them.

        Raises:
            ValueError: an option is not what it can be.
            DatasetError: a folder or a file is missing; names it.
        """
        super().__init__(root, split)
        if bits not in (8, 16):
            raise ValueError(f'bits {bits}: expected 8 or 16')
        self.dtype = np.uint8 if bits == 8 else np.uint16
        base = next(
            (b for b in (self.root, self.root / 'ReDWeb_V1') if (b / FOLDERS[0]).is_dir()), None
        )
        if base is None:
            raise DatasetError(
                f'{self.root / FOLDERS[0]}: no such folder; expected Imgs/*.jpg and RDs/*.png'
            )
        self.base = base
        images = sorted((base / FOLDERS[0]).glob('*.jpg'))
        if not images:
            raise DatasetError(f'{base / FOLDERS[0]}: no *.jpg; unpack ReDWeb there')
        for image in images:
            if not self._truth(image).is_file():
                raise DatasetError(
                    f'{self._truth(image)}: missing, {image.name} needs it; unpack ReDWeb again '
                    'or remove the picture'
                )
        self._images = divide(
            split, {'train': images}, lambda path: path.stem, val=val, val_share=val_share,
            where=base,
        )  # fmt: skip

    def _truth(self, image: Path) -> Path:
        return self.base / FOLDERS[1] / f'{image.stem}.png'

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self._images)

    def name(self, index: int) -> str:
        """Name a picture by its file."""
        return self._images[index].stem

    def files(self, index: int) -> tuple[Path, ...]:
        """List the picture and its truth."""
        return self._images[index], self._truth(self._images[index])

    def read(self, index: int) -> Frame:
        """See `DepthDataset.read`; values are divided by the largest of their type."""
        image, path = self.files(index)
        rgb = read_rgb(image)
        stored = read_png(path, self.dtype)
        if stored.shape != rgb.shape[:2]:
            raise DatasetError(
                f'{path}: {stored.shape}, the picture beside it {rgb.shape[:2]}; both must have '
                'one size'
            )
        if stored.min() == stored.max():
            raise DatasetError(f'{path}: {stored.min()} everywhere; remove the frame')
        return Frame(
            rgb=rgb,
            depth=np.zeros(rgb.shape[:2], np.float32),
            rel_inv_depth=stored.astype(np.float32) / np.float32(np.iinfo(self.dtype).max),
        )


def recognise(path: Path) -> str | None:
    """Say why a folder is of this kind; None when it is not."""
    for base in (path, path / 'ReDWeb_V1'):
        if all((base / name).is_dir() for name in FOLDERS):
            return 'folders Imgs and RDs'
    return None

"""Data sets by name: one file per format, numpy only; `loading` makes batches of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depth_node.training.datasets.base import DatasetError, DepthDataset
from depth_node.training.registry import construct, resolve

__all__ = ['DATASETS', 'DatasetError', 'DepthDataset', 'open_dataset']

_HERE = 'depth_node.training.datasets'
# The classes take (root, split, *, options).
DATASETS = {
    'rendered': f'{_HERE}.rendered:Rendered',
    'folder': f'{_HERE}.folder:Folder',
    'nyu_mat': f'{_HERE}.nyu_mat:NyuMat',
    'nyu_densedepth': f'{_HERE}.nyu_densedepth:NyuDenseDepth',
    'list': f'{_HERE}.list_file:ListFile',
    'kitti': f'{_HERE}.kitti:Kitti',
    'diode': f'{_HERE}.diode:Diode',
    'make3d': f'{_HERE}.make3d:Make3D',
    'sunrgbd': f'{_HERE}.sunrgbd:SunRgbd',
    'megadepth': f'{_HERE}.megadepth:MegaDepth',
    'diw': f'{_HERE}.diw:Diw',
    'redweb': f'{_HERE}.redweb:ReDWeb',
    'hypersim': f'{_HERE}.hypersim:Hypersim',
    'vkitti2': f'{_HERE}.vkitti2:VirtualKitti2',
    'sfm_triptych': f'{_HERE}.sfm_triptych:SfmTriptych',
    'bag': f'{_HERE}.bag:Bag',
}


def open_dataset(kind: str, root: Path, split: str, **options: Any) -> DepthDataset:
    """Index a data set.

    Raises:
        OptionError: an unknown kind, or an option that it refuses.
        DatasetError: the folder is not what the kind says; names the file and the remedy.
    """
    dataset = resolve(DATASETS, kind, 'data set')
    opened = construct(dataset, f'data.options of {kind}', Path(root), split, **options)
    assert isinstance(opened, DepthDataset)
    return opened

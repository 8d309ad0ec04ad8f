"""From data sets to batches: augmentation, tensors, seeded order, counted skips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from depth_node.training.augment import Augmenter, fit
from depth_node.training.datasets.base import DatasetError, DepthDataset
from depth_node.training.frame import Frame
import numpy as np
from numpy.typing import NDArray
import torch
from torch.utils.data import Dataset, Sampler, default_collate

UNKNOWN_FOCAL_SHARE = 0.9  # of the width: a field of view of 58 deg, for frames without camera


class FrameTensors(Dataset[dict[str, torch.Tensor]]):
    """Frames of a data set at network size, as tensors.

    A key is an index, or (index, seed) for an augmented draw. What an item holds stands in
    `objectives.base.Objective`, without the N; `skipped` counts the unreadable frames in whose
    place it came.
    """

    def __init__(
        self,
        dataset: DepthDataset,
        size_hw: tuple[int, int],
        *,
        augmenter: Augmenter | None = None,
        limit: int | None = None,
        max_broken: int = 0,
    ) -> None:
        """Wrap a data set.

        Args:
            dataset: where the frames come from.
            size_hw: the network's input size.
            augmenter: applied to keys with a seed.
            limit: use this many frames at most, spread evenly over the split.
            max_broken: how many frames in a row may be unreadable and are replaced by the next.
        """
        self.dataset, self.size_hw, self.augmenter = dataset, size_hw, augmenter
        self.max_broken = max_broken
        count = len(dataset)
        self.indices = np.arange(count)
        if limit is not None and limit < count:
            self.indices = np.linspace(0, count - 1, limit).round().astype(int)

    def __len__(self) -> int:
        """Count the frames."""
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Read, augment and convert one frame.

        Raises:
            DatasetError: unreadable, and more so than `max_broken` allows.
        """
        index, seed = key if isinstance(key, tuple) else (key, None)
        frame, skipped = self._readable(index)
        if seed is not None and self.augmenter is not None:
            frame = self.augmenter(frame, self.size_hw, np.random.default_rng(seed))
        else:
            frame = fit(frame, self.size_hw)
        item = tensors(frame)
        item['skipped'] = torch.tensor(skipped)
        return item

    def _readable(self, index: int) -> tuple[Frame, int]:
        skipped = 0
        while True:
            try:
                return self.dataset.read(int(self.indices[index])), skipped
            except DatasetError as error:
                skipped += 1
                if skipped > self.max_broken:
                    raise DatasetError(
                        f'{error}; check the data with: depth-node data check '
                        f'{self.dataset.root}, or allow some with data.max_broken'
                    ) from error
                index = (index + 1) % len(self)


def tensors(frame: Frame) -> dict[str, Any]:
    """Convert one frame; keys that it does not have are left out, `pairs` stay a list."""
    height, width = frame.size_hw
    K: NDArray[np.float32]
    if frame.camera is None:
        focal_px = UNKNOWN_FOCAL_SHARE * width
        K = np.array(
            [[focal_px, 0, (width - 1) / 2], [0, focal_px, (height - 1) / 2], [0, 0, 1]],
            np.float32,
        )
    else:
        K = frame.camera.K.astype(np.float32)
    item: dict[str, Any] = {
        'rgb': _chw(frame.rgb),
        'depth': torch.from_numpy(np.ascontiguousarray(frame.depth[None])),
        'K': torch.from_numpy(K),
    }
    for name in ('rel_inv_depth', 'ordinal', 'sky'):
        value = getattr(frame, name)
        if value is not None:
            item[name] = torch.from_numpy(np.ascontiguousarray(value[None]))
    if frame.normals is not None:
        item['normals'] = _chw(frame.normals)
    if frame.labels is not None:
        item['labels'] = torch.from_numpy(frame.labels.astype(np.int64))
    if frame.pairs is not None:
        item['pairs'] = torch.from_numpy(frame.pairs.uv)
        item['relation'] = torch.from_numpy(frame.pairs.relation)
    if frame.views:
        unknown = np.full((4, 4), np.nan)
        item['views'] = torch.stack([_chw(view.rgb) for view in frame.views])
        item['view_K'] = torch.from_numpy(
            np.stack([view.camera.K for view in frame.views]).astype(np.float32)
        )
        poses = [
            unknown if view.view_from_frame is None else view.view_from_frame
            for view in frame.views
        ]
        item['view_from_frame'] = torch.from_numpy(np.stack(poses).astype(np.float32))
        nothing = np.zeros((height, width), np.float32)
        depths = [nothing if view.depth is None else view.depth for view in frame.views]
        item['view_depth'] = torch.from_numpy(np.stack(depths)[:, None])
    return item


def _chw(image: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def collate_frames(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items; lists of pairs are padded to the longest, with `pair_valid`.

    Raises:
        DatasetError: frames of one batch do not have the same things.
    """
    keys = set(items[0])
    for item in items:
        if set(item) != keys:
            raise DatasetError(
                f'frames of one batch have different truths: {sorted(keys)} and {sorted(item)}'
            )
    if len({len(item.get('views', ())) for item in items}) > 1:
        raise DatasetError('frames of one batch have different numbers of views')
    plain = [{k: v for k, v in item.items() if k not in ('pairs', 'relation')} for item in items]
    batch: dict[str, torch.Tensor] = default_collate(plain)
    if 'pairs' in keys:
        longest = max(1, *(len(item['pairs']) for item in items))
        batch['pairs'] = torch.zeros(len(items), longest, 4)
        batch['relation'] = torch.zeros(len(items), longest, dtype=torch.int8)
        batch['pair_valid'] = torch.zeros(len(items), longest, dtype=torch.bool)
        for index, item in enumerate(items):
            count = len(item['pairs'])
            batch['pairs'][index, :count] = item['pairs']
            batch['relation'][index, :count] = item['relation']
            batch['pair_valid'][index, :count] = True
    return batch


class SeededSampler(Sampler[tuple[int, int]]):
    """Shuffled (index, seed) keys that depend on the run's seed and step count alone.

    The seed of a draw travels with its index, so that neither the number of loader workers nor
    their order changes what the network sees. With several processes each takes every
    `world`-th key: together their batches hold what one process with the larger batch sees. A
    resumed run goes on with the very pictures that come next, in the middle of an epoch too.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        batches_done: Callable[[], int] = lambda: 0,
    ) -> None:
        """Sample `length` frames once an epoch, shared by `world` processes.

        Args:
            length: frames in the data set.
            seed: of the run.
            batch_size: keys a batch and process; an epoch has whole batches only.
            rank: of this process.
            world: number of processes.
            accumulate: batches a step of the optimiser; an epoch has whole steps only.
            batches_done: asked at the start of an iteration, where to go on.
        """
        self._length, self._seed, self._batch_size = length, seed, batch_size
        self._rank, self._world, self._batches_done = rank, world, batches_done
        steps = length // (world * batch_size * accumulate)  # an epoch
        self._batches = steps * accumulate

    def __len__(self) -> int:
        """Keys an epoch and process."""
        return self._batches * self._batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield this process's keys, to the end of the epoch in which the run is."""
        epoch, batch = divmod(self._batches_done(), max(1, self._batches))
        rng = np.random.default_rng((self._seed, epoch))
        seeds = rng.integers(0, 2**62, self._length)
        order = rng.permutation(self._length)
        mine = slice(
            batch * self._batch_size * self._world + self._rank,
            len(self) * self._world,  # all processes take the same number of steps
            self._world,
        )
        for index, seed in zip(order[mine], seeds[mine], strict=True):
            yield int(index), int(seed)

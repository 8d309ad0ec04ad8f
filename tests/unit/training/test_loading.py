"""Batches: right values at the right size, seeded order, processes' shares, counted skips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('cv2')

from depth_node.camera import Camera  # noqa: E402
from depth_node.training.augment import Augmenter, AugmentSettings  # noqa: E402
from depth_node.training.datasets import (  # noqa: E402
    DatasetError,
    DepthDataset,
    open_dataset,
)
from depth_node.training.frame import Frame, Pairs, View  # noqa: E402
from depth_node.training.loading import (  # noqa: E402
    FrameTensors,
    SeededSampler,
    collate_frames,
    tensors,
)


def test_intrinsics_belong_to_the_network_size(frames_root):
    data = open_dataset('rendered', frames_root, 'val')
    native = FrameTensors(data, (60, 80))[0]['K']
    stretched = FrameTensors(data, (96, 320))[0]['K']
    assert stretched[0, 0] / native[0, 0] == pytest.approx(320 / 80)
    assert stretched[1, 1] / native[1, 1] == pytest.approx(96 / 60)
    # pixel centres are whole numbers: cx' = (cx + 0.5) s - 0.5
    assert float(stretched[0, 2]) == pytest.approx((float(native[0, 2]) + 0.5) * 4 - 0.5)
    assert float(native[0, 0]) == pytest.approx(data.read(0).camera.fx)


def test_limit_spreads_over_the_split(frames_root):
    data = open_dataset('rendered', frames_root, 'train')
    frames = FrameTensors(data, (60, 80), limit=3)
    names = [data.name(index) for index in frames.indices]
    assert [name.partition('-')[0] for name in names] == ['room', 'room', 'table']


def test_a_draw_depends_on_its_key_only(frames_root):
    data = FrameTensors(
        open_dataset('rendered', frames_root, 'train'),
        (64, 96),
        augmenter=Augmenter(AugmentSettings()),
    )
    a, b, other = data[(1, 77)], data[(1, 77)], data[(1, 78)]
    assert torch.equal(a['rgb'], b['rgb'])
    assert torch.equal(a['depth'], b['depth'])
    assert not torch.equal(a['rgb'], other['rgb'])


def test_sampler_repeats_for_a_step_and_changes_with_the_epoch():
    done = 0
    sampler = SeededSampler(50, 3, 5, batches_done=lambda: done)
    first = list(sampler)
    assert list(sampler) == first
    assert sorted(index for index, _ in first) == list(range(50))
    assert len({seed for _, seed in first}) == 50
    done = 10
    second = list(sampler)
    assert second != first
    assert sorted(index for index, _ in second) == list(range(50))
    done = 13  # in the middle of the second epoch
    assert list(sampler) == second[15:]


@pytest.mark.parametrize('length', [48, 53])
def test_processes_together_see_the_batches_of_one(length):
    one = list(SeededSampler(length, 5, 12))
    shares = [list(SeededSampler(length, 5, 4, rank=rank, world=3)) for rank in range(3)]
    assert {len(share) for share in shares} == {length // 12 * 4}
    assert len(one) == length // 12 * 12
    for step in range(length // 12):
        together = {key for share in shares for key in share[4 * step : 4 * step + 4]}
        assert together == set(one[12 * step : 12 * step + 12])


def test_an_epoch_has_whole_steps_of_several_batches():
    done = 0
    sampler = SeededSampler(23, 3, 2, accumulate=4, batches_done=lambda: done)
    first = list(sampler)
    assert len(first) == len(sampler) == 2 * 4 * 2  # of 11 batches
    done = 4  # batches, after one step
    assert list(sampler) == first[8:]
    done = 8
    second = list(sampler)
    assert len(second) == 16
    assert second != first


def test_broken_frames_are_counted_or_named(frames_root):
    path = frames_root / 'train/room-000001/001.jpg'
    path.write_bytes(b'')
    data = open_dataset('rendered', frames_root, 'train')
    with pytest.raises(DatasetError, match=rf'{path}.*depth-node data check.*max_broken'):
        FrameTensors(data, (64, 96))[1]
    lenient = FrameTensors(data, (64, 96), max_broken=1)
    item = lenient[1]
    assert int(item['skipped']) == 1
    assert torch.equal(item['rgb'], lenient[2]['rgb'])
    assert int(lenient[2]['skipped']) == 0


def full_frame(pairs: int, views: int = 2) -> Frame:
    rng = np.random.default_rng(pairs)
    size = (12, 20)
    camera = Camera(size, 15.0, 18.0, 9.0, 6.0)
    rgb = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    pose = np.eye(4)
    pose[0, 3] = -0.5
    return Frame(
        rgb=rgb,
        depth=rng.uniform(1, 5, size).astype(np.float32),
        camera=camera,
        rel_inv_depth=rng.uniform(0, 1, size).astype(np.float32),
        normals=rng.normal(size=(*size, 3)).astype(np.float32),
        labels=rng.integers(-1, 5, size).astype(np.int32),
        ordinal=rng.integers(0, 3, size).astype(np.int8),
        sky=rng.random(size) < 0.5,
        pairs=Pairs(rng.uniform(0, 11, (pairs, 4)).astype(np.float32),
                    rng.integers(-1, 2, pairs).astype(np.int8)),
        views=tuple(
            View(rgb[:, ::-1].copy(), replace(camera, fx=16.0 + index),
                 pose if index == 0 else None)
            for index in range(views)
        ),
    )  # fmt: skip


def test_everything_a_frame_knows_is_in_the_batch():
    frames = [full_frame(3), full_frame(7)]
    batch = collate_frames([{**tensors(frame), 'skipped': 0} for frame in frames])
    assert batch['rgb'].shape == (2, 3, 12, 20)
    assert batch['labels'].dtype == torch.int64
    assert batch['sky'].dtype == torch.bool
    assert batch['pairs'].shape == (2, 7, 4)
    assert batch['pair_valid'].sum(1).tolist() == [3, 7]
    np.testing.assert_array_equal(batch['pairs'][0, :3].numpy(), frames[0].pairs.uv)
    assert batch['views'].shape == (2, 2, 3, 12, 20)
    np.testing.assert_array_equal(
        batch['views'][1, 0].permute(1, 2, 0).numpy(), frames[1].views[0].rgb
    )
    assert batch['view_K'][0, :, 0, 0].tolist() == [16.0, 17.0]
    assert batch['view_from_frame'][0, 0, 0, 3] == -0.5
    assert batch['view_from_frame'][0, 1].isnan().all()
    assert batch['view_depth'].shape == (2, 2, 1, 12, 20)
    np.testing.assert_array_equal(
        batch['normals'][1].permute(1, 2, 0).numpy(), frames[1].normals
    )


def test_frames_that_do_not_fit_together_are_refused():
    whole = tensors(full_frame(3))
    poor = {key: value for key, value in whole.items() if key != 'sky'}
    with pytest.raises(DatasetError, match='different truths'):
        collate_frames([whole, poor])
    with pytest.raises(DatasetError, match='different numbers of views'):
        collate_frames([whole, tensors(full_frame(3, views=1))])


def test_a_frame_without_camera_gets_a_plausible_one():
    K = tensors(replace(full_frame(1), camera=None))['K']
    assert (float(K[0, 2]), float(K[1, 2])) == (9.5, 5.5)
    assert K[0, 0] == K[1, 1] == pytest.approx(18.0)


def test_a_loader_with_workers_gives_what_the_data_set_gives(frames_root):
    frames = FrameTensors(open_dataset('rendered', frames_root, 'train'), (32, 64))
    loader = torch.utils.data.DataLoader(
        frames, batch_size=4, num_workers=2, collate_fn=collate_frames
    )
    batches = list(loader)
    assert [len(batch['rgb']) for batch in batches] == [4, 4]
    for index in range(8):
        found = batches[index // 4]['depth'][index % 4]
        assert torch.equal(found, frames[index]['depth'])


def test_the_protocol_is_abstract():
    with pytest.raises(TypeError, match='abstract'):
        DepthDataset(Path('.'), 'train')

"""Reading frames: what is read is right, what is wrong is named with its file."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')
cv2 = pytest.importorskip('cv2')

from depth_node.training.augment import Augmenter, AugmentSettings  # noqa: E402
from depth_node.training.datasets import (  # noqa: E402
    DatasetError,
    RenderedFrames,
    SeededSampler,
    fingerprint,
)


def test_a_frame_has_the_depth_and_focal_length_of_its_files(frames_root):
    data = RenderedFrames(frames_root, 'train', (60, 80))
    files = data.files[2]
    stored = cv2.imread(str(files.depth), cv2.IMREAD_UNCHANGED)
    item = data[2]
    assert len(data) == 8
    assert item['rgb'].shape == (3, 60, 80)
    assert item['rgb'].dtype == torch.uint8
    np.testing.assert_allclose(item['depth'][0].numpy() * 1000, stored, rtol=1e-6)
    fx = json.loads(files.info.read_text())['fx']
    assert item['focal_px'].item() == pytest.approx(fx, rel=1e-6)


def test_focal_length_belongs_to_the_network_size(frames_root):
    native = RenderedFrames(frames_root, 'val', (60, 80))[0]['focal_px']
    stretched = RenderedFrames(frames_root, 'val', (96, 320))[0]['focal_px']
    assert stretched / native == pytest.approx(((96 / 60) * (320 / 80)) ** 0.5, rel=1e-5)


def test_limit_spreads_over_the_split(frames_root):
    kinds = [f.kind for f in RenderedFrames(frames_root, 'train', (60, 80), limit=3).files]
    assert kinds == ['room', 'room', 'table']


def test_sampler_repeats_for_an_epoch_and_changes_with_it():
    sampler = SeededSampler(50, seed=3)
    first = list(sampler)
    assert list(sampler) == first
    assert sorted(index for index, _ in first) == list(range(50))
    assert len({seed for _, seed in first}) == 50
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_a_draw_depends_on_its_key_only(frames_root):
    data = RenderedFrames(frames_root, 'train', (64, 96), augmenter=Augmenter(AugmentSettings()))
    a, b, other = data[(1, 77)], data[(1, 77)], data[(1, 78)]
    assert torch.equal(a['rgb'], b['rgb'])
    assert torch.equal(a['depth'], b['depth'])
    assert not torch.equal(a['rgb'], other['rgb'])


def test_fingerprint_counts_and_changes_with_the_data(frames_root):
    before = fingerprint(frames_root)
    assert before['frames'] == {'train': 8, 'val': 2, 'test': 1}
    (frames_root / 'train/room-000001/000.jpg').write_bytes(b'x')
    assert (
        fingerprint(frames_root)['sha256_of_names_and_sizes']
        != before['sha256_of_names_and_sizes']
    )


def test_missing_folder_and_empty_folder_say_how_to_render(tmp_path):
    with pytest.raises(DatasetError, match='depth-node synthesize'):
        RenderedFrames(tmp_path, 'train', (64, 96))
    (tmp_path / 'train').mkdir()
    with pytest.raises(DatasetError, match='no frames'):
        RenderedFrames(tmp_path, 'train', (64, 96))
    with pytest.raises(DatasetError, match="split 'trian'"):
        RenderedFrames(tmp_path, 'trian', (64, 96))


def test_a_missing_file_is_named_at_once(frames_root):
    (frames_root / 'train/room-000001/002.depth.png').unlink()
    with pytest.raises(DatasetError, match=r'002\.depth\.png: missing'):
        RenderedFrames(frames_root, 'train', (64, 96))


@pytest.mark.parametrize(
    ('name', 'spoil', 'reason'),
    [
        ('000.jpg', lambda p: p.write_bytes(b'no picture'), 'not a readable picture'),
        ('000.depth.png', lambda p: p.write_bytes(b'no picture'), 'unreadable'),
        ('000.depth.png', lambda p: cv2.imwrite(str(p), np.zeros((60, 80), np.uint8)), 'uint8'),
        ('000.depth.png', lambda p: cv2.imwrite(str(p), np.ones((30, 80), np.uint16)),
         'both must have one size'),
        ('000.json', lambda p: p.write_text('{'), 'not usable intrinsics'),
        ('000.json', lambda p: p.write_text('{"width": 80, "height": 60}'), 'fx'),
        ('000.json', lambda p: p.write_text(p.read_text().replace('"width": 80', '"width": 81')),
         r'says \(60, 81\)'),
    ],
)  # fmt: skip
def test_a_spoilt_file_is_named_with_the_reason(frames_root, name, spoil, reason):
    path = frames_root / 'train/room-000001' / name
    spoil(path)
    data = RenderedFrames(frames_root, 'train', (64, 96))
    with pytest.raises(DatasetError, match=reason) as caught:
        data[0]
    assert str(path) in str(caught.value)

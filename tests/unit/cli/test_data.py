"""`depth-node data check`: what it recognises, measures, shows, and calls broken."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
import sys

import cv2
from depth_node.camera import Camera
from depth_node.cli import data
from depth_node.cli._sheet import CAPTION_PX, TILE_WIDTH_PX, Tile, write_sheet
from depth_node.images import colorize
from depth_node.training.datasets import DATASETS
from depth_node.training.frame import Frame, Pairs, View
import numpy as np
import pytest

pytest.importorskip('h5py', reason='h5py is not installed (extra `data`)')
pytest.importorskip('scipy', reason='SciPy, by which the tests write MATLAB files')
pytest.importorskip('rosbags', reason='rosbags is not installed (extra `data`)')

WRITERS = Path(__file__).parents[1] / 'training' / 'datasets'
# Kinds whose writer makes a folder that says what it is; the writer's name where it differs.
KINDS = {kind: kind for kind in DATASETS} | {'list': 'list_file'}


def writer(name):
    path = WRITERS / f'write_{name}.py'
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_rendered(root):
    for split in ('train', 'val'):
        folder = root / split / 'room-000001'
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / '000.jpg'), np.full((30, 40, 3), 90, np.uint8))
        cv2.imwrite(str(folder / '000.depth.png'), np.full((30, 40), 2500, np.uint16))
        camera = {'width': 40, 'height': 30, 'fx': 50, 'fy': 52, 'cx': 19.5, 'cy': 14.5}
        (folder / '000.json').write_text(json.dumps(camera))


@pytest.fixture
def folder(tmp_path):
    """A plain folder of 4 frames in each of train and val, of 30x44 px."""
    root = tmp_path / 'mine'
    return root, writer('folder').write(
        root, frames=4, size_hw=(30, 44), seed=2, splits=('train', 'val')
    )


def test_as_a_process(cli, folder):
    result = cli('data', 'check', 'mine')
    assert result.returncode == 0, result.stderr
    first, *rest = result.stdout.splitlines()
    assert first == 'mine: folder (train/frame_000_depth_mm.png beside its picture)'
    rows = [line.split() for line in rest]
    assert ['train', '4', '4', '0', '44x30'] in [row[:5] for row in rows]
    assert ['val', '4', '4', '0', '44x30'] in [row[:5] for row in rows]
    assert not any(row[0] == 'test' for row in rows)
    assert "no such split  mine/test: no such folder; found ['train', 'val']" in rest
    assert rest[-1] == 'nothing is broken'


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_is_recognised_by_its_content_and_read(cli_here, tmp_path, kind):
    root = tmp_path / 'data'
    if kind == 'rendered':
        write_rendered(root)
    else:
        root.mkdir()
        writer(KINDS[kind]).write(root, frames=6)
    assert [found for found, _ in data.recognised(root)] == [kind]
    result = cli_here('data', 'check', 'data', '--json', '--sheet', 'sheet.png')
    assert result.returncode == 0, result.stderr + result.stdout
    document = json.loads(result.stdout)
    assert document['kind'] == kind
    assert document['broken'] == 0
    assert sum(split['read'] for split in document['splits']) > 0
    sheet = cv2.imread(str(tmp_path / 'sheet.png'))
    assert sheet.shape[1] == 4 * TILE_WIDTH_PX


def test_an_empty_folder_is_no_data_set(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'notes.txt').write_text('nothing\n')
    assert data.recognised(tmp_path) == []
    assert data.recognised(tmp_path / 'a' / 'notes.txt') == []


def test_numbers_are_those_of_all_pixels(cli_here, folder):
    root, truth = folder
    result = cli_here('data', 'check', root, '--json', '--option', 'k=[50, 52, 20, 14]')
    for split in json.loads(result.stdout)['splits']:
        depth = np.stack([d for name, (_, d) in truth.items() if name.startswith(split['split'])])
        known = depth[depth > 0]
        assert split['frames'] == split['read'] == 4
        assert split['unknown_share'] == pytest.approx(1 - known.size / depth.size)
        for share, value in split['depth_percentiles'].items():
            assert value == pytest.approx(np.percentile(known, int(share)), rel=0.005)
        assert split['sizes_hw'] == [{'size_hw': [30, 44], 'frames': 4}]
        angle = 2 * np.degrees(np.arctan(22 / 50))
        assert split['hfov_deg'] == pytest.approx([angle, angle])
        assert split['frames_with_camera'] == 4


def test_broken_frames_are_named_twenty_at_most(cli_here, tmp_path):
    root = tmp_path / 'mine'
    writer('folder').write(root, frames=26, size_hw=(8, 12), splits=('train', 'val'))
    for index in range(25):
        path = root / 'train' / f'frame_{index:03d}_depth_mm.png'
        path.write_bytes(path.read_bytes()[:40])
    result = cli_here('data', 'check', 'mine')
    assert result.returncode == 1
    lines = [line for line in result.stdout.splitlines() if line.startswith('BROKEN')]
    assert len(lines) == 20
    assert 'train train/frame_000: ' in lines[0]
    assert 'frame_000_depth_mm.png: not a readable picture (40 bytes)' in lines[0]
    assert 'and 5 more; --json lists all' in result.stdout
    assert 'nothing is broken' not in result.stdout
    result = cli_here('data', 'check', 'mine', '--json')
    assert result.returncode == 1
    document = json.loads(result.stdout)
    assert document['broken'] == 25
    train = next(split for split in document['splits'] if split['split'] == 'train')
    assert [item['frame'] for item in train['broken']] == [
        f'train/frame_{index:03d}' for index in range(25)]
    assert train['read'] == 26
    assert cli_here('data', 'check', 'mine', '--split', 'val').returncode == 0


def test_the_wrong_unit_is_found(cli_here, folder):
    root, _ = folder
    for path in root.rglob('*_depth_mm.png'):
        path.rename(path.with_name(path.name.replace('_mm', '')))
    result = cli_here('data', 'check', root, '--option', 'unit=m')
    assert result.returncode == 1
    assert result.stdout.count('is the file in another unit') == 8
    assert cli_here('data', 'check', root).returncode == 0


def test_a_sample_is_spread_evenly(cli_here, tmp_path):
    root = tmp_path / 'mine'
    writer('folder').write(root, frames=9, size_hw=(8, 12), splits=('train',))
    for index in (0, 4, 8):
        (root / 'train' / f'frame_{index:03d}.png').write_bytes(b'')
    result = cli_here('data', 'check', 'mine', '--sample', 3, '--json')
    (split,) = json.loads(result.stdout)['splits']
    assert (split['frames'], split['read'], len(split['broken'])) == (9, 3, 3)
    result = cli_here('data', 'check', 'mine', '--sample', 1)
    assert 'train/frame_004' in result.stdout
    (root / 'train' / 'frame_004.png').write_bytes((root / 'train' / 'frame_001.png').read_bytes())
    result = cli_here('data', 'check', 'mine', '--sample', 1)
    assert result.returncode == 0
    assert 'nothing is broken among the frames that were read' in result.stdout


def test_two_ways_to_read_a_folder(cli_here, folder):
    root, _ = folder
    (root / 'train.txt').write_text('train/frame_000.png train/frame_000_depth_mm.png\n')
    (root / 'val.txt').write_text('val/frame_000.png val/frame_000_depth_mm.png\n')
    result = cli_here('data', 'check', root)
    assert result.returncode == 2
    assert 'can be read in 2 ways' in result.stderr
    assert '--kind folder' in result.stderr
    assert "--kind list            train.txt: rows of 'rgb depth'" in result.stderr
    assert cli_here('data', 'check', root, '--kind', 'folder').returncode == 0
    result = cli_here('data', 'check', root, '--kind', 'list', '--json')
    assert [split['frames'] for split in json.loads(result.stdout)['splits']] == [1, 1]


def test_what_is_not_recognised(cli_here, tmp_path):
    (tmp_path / 'a' / 'nyu').mkdir(parents=True)
    result = cli_here('data', 'check', 'a')
    assert result.returncode == 1
    assert 'a: not recognised as a data set; name what it is by --kind, one of rendered,' in (
        result.stderr)
    writer('nyu_mat').write(tmp_path / 'a' / 'nyu', frames=5, size_hw=(8, 12))
    result = cli_here('data', 'check', 'a')
    assert 'a/nyu looks like nyu_mat (nyu_depth_v2_labeled.mat)' in result.stderr
    result = cli_here('data', 'check', 'b')
    assert result.returncode == 1
    assert 'b: no such file or folder' in result.stderr


def test_what_is_nothing_is_told_apart(cli_here, tmp_path):
    (tmp_path / 'empty').mkdir()
    result = cli_here('data', 'check', 'empty')
    assert (result.returncode, 'empty: an empty folder' in result.stderr) == (1, True)
    own = tmp_path / 'own'
    own.mkdir()
    (own / 'a_color.png').write_bytes(b'')
    result = cli_here('data', 'check', 'own')
    assert 'with X_depth_mm.png (16 bit, millimetres), X_depth.png or X.npy' in result.stderr
    (own / 'b.zip').write_bytes(b'PK cut off')
    for path in ('own', 'own/b.zip'):
        result = cli_here('data', 'check', path)
        assert result.returncode == 1
        assert 'own/b.zip: not a readable zip (10 bytes)' in result.stderr


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--kind', 'nyu'], '--kind nyu: one of rendered, folder,'),
        (['--option', 'unit'], '--option unit: KEY=VALUE is expected'),
        (['--option', 'unit=['], '--option unit=[: the value is not YAML'),
        (['--option', 'units=m'], "option 'units' is not known"),
        (['--option', 'unit=inch'], "unit 'inch': expected one of"),
        (['--option', 'k=5'], 'k: found 5, expected [a number, ...] or null'),
        (['--sheet', 'a.txt'], 'a name ending in .jpg or .png'),
        (['--split', 'all'], 'invalid choice'),
        (['--sample', '0'], 'a whole number above 0'),
    ],
)
def test_wrong_usage(cli_here, folder, words, message):
    result = cli_here('data', 'check', folder[0], *words)
    assert result.returncode == 2
    assert message in result.stderr


def test_help_names_every_kind(cli_here):
    text = cli_here('data', 'check', '--help').stdout
    named = text.partition('kinds: ')[2].partition('\n\n')[0].split()
    assert [name.rstrip(',') for name in named] == list(DATASETS)


def test_debug_may_stand_behind_the_path(cli_here, folder):
    assert cli_here('data', 'check', folder[0], '--debug').returncode == 0


def test_an_action_is_needed(cli_here):
    assert cli_here('data').returncode == 2


def test_a_split_that_cannot_be_indexed_fails(cli_here, folder):
    root, _ = folder
    np.save(root / 'val' / 'frame_002.npy', np.ones((30, 44)))
    result = cli_here('data', 'check', root)
    assert result.returncode == 1
    assert 'FAILED  ' in result.stdout
    assert 'is depth of the same picture; remove one' in result.stdout
    assert 'nothing is broken' not in result.stdout
    assert json.loads(cli_here('data', 'check', root, '--json').stdout)['failures']
    assert cli_here('data', 'check', root, '--split', 'train').returncode == 0
    result = cli_here('data', 'check', root, '--split', 'test')
    assert result.returncode == 1
    assert "test: no such folder; found ['train', 'val']" in result.stderr


def test_frames_in_two_splits_are_noted(cli_here, tmp_path):
    writer('nyu_mat').write(tmp_path, frames=6, size_hw=(8, 12))
    shared = 'test and val have 2 frames in common'
    assert shared in cli_here('data', 'check', tmp_path, '--option', 'val=test').stdout
    assert 'in common' not in cli_here('data', 'check', tmp_path).stdout


def test_a_missing_package_is_named(cli_here, tmp_path, monkeypatch):
    writer('nyu_mat').write(tmp_path, frames=6, size_hw=(8, 12))
    monkeypatch.setitem(sys.modules, 'h5py', None)
    result = cli_here('data', 'check', tmp_path)
    assert result.returncode == 1
    assert "needs the Python package 'h5py'" in result.stderr
    assert "pip install '.[data]' in the clone" in result.stderr


# --- the sheet


def test_sheet_shows_pictures_beside_coloured_depth(cli_here, tmp_path):
    for index in range(2):
        folder = tmp_path / 'mine' / 'train'
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f'{index}.png'), np.full((60, 120, 3), (9, 99, 199), np.uint8))
        depth = np.full((60, 120), 2000, np.uint16)
        depth[:, 60:] = 4000
        depth[:20] = 0
        cv2.imwrite(str(folder / f'{index}_depth_mm.png'), depth)
    result = cli_here('data', 'check', 'mine', '--sheet', 'out/sheet.png')
    assert 'wrote out/sheet.png' in result.stdout
    sheet = cv2.imread(str(tmp_path / 'out' / 'sheet.png'))
    assert sheet.shape == (2 * CAPTION_PX + 120, 4 * TILE_WIDTH_PX, 3)
    top = 2 * CAPTION_PX
    for left in (0, 2 * TILE_WIDTH_PX):
        assert (sheet[top:, left:left + TILE_WIDTH_PX] == (9, 99, 199)).all()
        right = sheet[top:, left + TILE_WIDTH_PX:left + 2 * TILE_WIDTH_PX]
        assert not right[:40].any()  # unknown
        near, far = right[100, 20], right[100, 220]
        assert near[2] > 80  # red end
        assert near[0] < 60
        assert not np.array_equal(near, far)
        assert far[0] > far[2]
        assert (right[41:, :120] == near).all()
        assert (right[41:, 120:] == far).all()


def frame(**options):
    rgb = np.zeros((60, 120, 3), np.uint8)
    return Frame(rgb, np.zeros((60, 120), np.float32), **options)


def test_tile_of_relative_inverse_depth_is_red_where_near():
    inverse = np.tile(np.linspace(0.2, 0.9, 120, dtype=np.float32), (60, 1))
    inverse[:30] = np.nan
    tile = Tile.of('a', frame(rel_inv_depth=inverse))
    assert tile.relative
    right = tile.paint(None)[CAPTION_PX:, TILE_WIDTH_PX:]
    assert not right[:58].any()
    expected = colorize(np.array([[10.0, 1.0]], np.float32), 1.0, 10.0)[0]
    np.testing.assert_array_equal(right[100, [0, -1]], expected)


def test_tile_of_pairs_marks_the_farther_point_blue():
    pairs = Pairs(np.array([[10, 20, 100, 40], [50, 10, 60, 50]], np.float32),
                  np.array([1, -1], np.int8))  # fmt: skip
    tile = Tile.of('a', frame(pairs=pairs))
    for (u, v), farther in (((10, 20), True), ((100, 40), False), ((50, 10), False),
                            ((60, 50), True)):  # fmt: skip
        blue, _, red = (int(value) for value in tile.bgr[2 * v, 2 * u])
        assert (blue > red) == farther


def test_tile_without_depth_shows_the_other_view():
    other = np.full((60, 120, 3), (10, 20, 30), np.uint8)
    view = View(other, Camera((60, 120), 50, 52, 60, 30))
    tile = Tile.of('a', frame(views=(view,)))
    assert (tile.paint((1.0, 2.0))[CAPTION_PX:, TILE_WIDTH_PX:] == (30, 20, 10)).all()


def test_sheet_of_tiles_of_several_heights(tmp_path):
    tall = Tile('a', np.full((200, TILE_WIDTH_PX, 3), 7, np.uint8))
    flat = Tile('b' * 100, np.full((50, TILE_WIDTH_PX, 3), 9, np.uint8))
    write_sheet(tmp_path / 's.png', [tall, flat, flat], None, 'm')
    sheet = cv2.imread(str(tmp_path / 's.png'))
    assert sheet.shape == (3 * CAPTION_PX + 250, 4 * TILE_WIDTH_PX, 3)
    assert (sheet[2 * CAPTION_PX + 60, 2 * TILE_WIDTH_PX + 5] == 255).all()
    assert (sheet[-1, -1] == 255).all()

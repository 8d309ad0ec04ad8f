import itertools
import json
import subprocess
import sys

import cv2
from depth_node.synthesis import generate, writer
from depth_node.synthesis.blender import RenderError
from depth_node.synthesis.viewpoints import View
import numpy as np
import pytest

VIEW = View((0.5, -0.2, 1.1), 30.0, -20.0, 2.0, 60.0)


def frame(height=24, width=32):
    rgb = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    depth = np.broadcast_to(np.linspace(0.8, 4, width, dtype=np.float32), (height, width)).copy()
    depth[0, :3] = np.nan
    return rgb, depth


def tilted_plane(height=24, width=32):
    v, u = np.mgrid[:height, :width]
    return (1 / (0.3 + 0.01 * u + 0.02 * v)).astype(np.float32)


def test_share_of_one_plane_counts_what_lies_on_it():
    depth = tilted_plane(96, 128)
    assert writer.plane_share(depth) == 1.0
    depth[:, 96:] *= 0.5  # a quarter of the picture stands in front
    assert writer.plane_share(depth) == pytest.approx(0.75, abs=0.02)
    room = np.minimum(tilted_plane(96, 128), tilted_plane(96, 128)[:, ::-1])
    assert writer.plane_share(room) < 0.7


def test_speckles_are_pixels_without_a_neighbour():
    depth = np.full((20, 30), 2.0, np.float32)
    depth[:, 15:] = 4.0  # a border is none
    assert writer.speckle_share(depth) == 0
    depth[3, 4], depth[10, 20] = 1.0, 8.0
    assert writer.speckle_share(depth) == pytest.approx(2 / 600)


def test_millimetres_are_rounded_and_unknown_is_zero():
    depth = np.array([[1.2346, np.nan, np.inf, -1.0, 65.535, 65.6, 0.0004]], np.float32)
    assert writer.depth_to_millimetres(depth).tolist() == [[1235, 0, 0, 0, 65535, 0, 0]]


def test_tone_map_brings_the_percentile_to_its_level():
    radiance = np.ones((10, 10, 3), np.float32) * 7.0
    grey = writer.tone_map(radiance, level=0.2158,
                            reference=writer.brightness(radiance, 90))
    assert np.unique(grey).tolist() == [128]  # sRGB of linear 0.2158 is 0.502


def test_tone_map_keeps_order_in_the_shoulder():
    ramp = np.repeat(np.linspace(0, 3, 40, dtype=np.float32)[None, :, None], 3, 2)
    values = writer.tone_map(ramp, level=0.7, reference=writer.brightness(ramp, 50))
    values = values[0, :, 0].astype(int)
    assert np.all(np.diff(values) >= 0)
    assert values[-1] > 245


def test_splits_share_no_scene_and_have_their_shares():
    splits = [writer.split_of(scene) for scene in range(1000)]
    assert [splits.count(name) for name in writer.SPLITS] == [840, 80, 80]


@pytest.mark.parametrize(
    ('change', 'fault'),
    [
        (lambda rgb, depth: None, ''),
        (lambda rgb, depth: depth.fill(np.nan), 'mostly background'),
        (lambda rgb, depth: depth.fill(2.0), 'flat'),
        (lambda rgb, depth: depth.__isub__(0.75), 'too near'),
        (lambda rgb, depth: rgb.__setitem__((slice(4), slice(None)), (255, 0, 255)), 'magenta'),
        (lambda rgb, depth: depth.__setitem__(slice(None), tilted_plane()), 'one plane'),
        (lambda rgb, depth: depth.__setitem__((slice(1, None, 4), slice(1, None, 4)), 9.0),
         'speckled depth'),
        (lambda rgb, depth: rgb.__setitem__(slice(14), 255), 'burnt out'),
        (lambda rgb, depth: rgb.fill(3), 'dark'),
        (lambda rgb, depth: rgb.fill(120), 'empty'),
    ],
)
def test_bad_frames_are_named(change, fault):
    rgb, depth = frame()
    change(rgb, depth)
    assert writer.frame_fault(rgb, depth, 'room') == fault


def test_scene_appears_whole_and_in_the_agreed_format(tmp_path):
    scene = writer.SceneWriter(tmp_path, 9, 'table')
    rgb, depth = frame()
    scene.add(rgb, depth, VIEW)
    assert writer.finished_scenes(tmp_path) == set()
    assert not (tmp_path / 'test').exists()
    scene.close({'scene': 9, 'assets': []})
    folder = tmp_path / 'test' / 'table-000009'
    assert writer.finished_scenes(tmp_path) == {9}
    assert cv2.imread(str(folder / '000.jpg')).shape == (24, 32, 3)
    stored = cv2.imread(str(folder / '000.depth.png'), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    assert stored[0, :3].tolist() == [0, 0, 0]
    assert stored[5, 31] == 4000
    notes = json.loads((folder / '000.json').read_text())
    assert notes['fx'] == pytest.approx(16 / np.tan(np.radians(30)))
    assert (notes['cx'], notes['cy'], notes['kind']) == (15.5, 11.5, 'table')
    assert np.array(notes['camera_to_world'])[:3, 3] == pytest.approx(VIEW.position)


def test_colours_keep_their_order_on_disk(tmp_path):
    scene = writer.SceneWriter(tmp_path, 0, 'room')
    red = np.zeros((24, 32, 3), np.uint8)
    red[..., 0] = 220
    scene.add(red, frame()[1], VIEW)
    scene.close({})
    blue, _, again = cv2.imread(str(tmp_path / 'train/room-000000/000.jpg'))[12, 16]
    assert again > 200
    assert blue < 30


def test_discarded_scene_leaves_nothing(tmp_path):
    scene = writer.SceneWriter(tmp_path, 0, 'room')
    scene.add(*frame(), VIEW)
    scene.discard()
    assert writer.finished_scenes(tmp_path) == set()
    assert not list((tmp_path / '.partial').iterdir())


def test_rest_of_a_killed_run_is_overwritten(tmp_path):
    writer.SceneWriter(tmp_path, 0, 'room').add(*frame(), VIEW)  # killed before close
    again = writer.SceneWriter(tmp_path, 0, 'room')
    again.close({})
    assert [p.name for p in (tmp_path / 'train/room-000000').iterdir()] == ['scene.json']


def test_summary_counts_and_shows(tmp_path):
    for number, kind in [(0, 'room'), (1, 'table'), (3, 'room')]:
        scene = writer.SceneWriter(tmp_path, number, kind)
        scene.add(*frame(), VIEW)
        scene.add(*frame(), VIEW)
        scene.close({'faults': {'flat': 1}})
    credit = {'key': 'a/b', 'name': 'cup', 'creator': 'Ann', 'licence': 'CC0-1.0'}
    meta = writer.summarise(tmp_path, {'seed': 5, 'size_hw': [24, 32]}, [credit])
    assert meta['counts']['train'] == {'scenes': 2, 'frames': 4, 'room': 2, 'table': 2}
    assert meta['hfov_deg_histogram']['share'][5] == 1.0  # all frames: 60 to 65 degrees
    card = (tmp_path / 'card.md').read_text()
    assert '| train | 2 | 4 | 2 | 0 | 0 | 0 | 0 | 2 | 0 |' in card
    assert '| 60 to 65 | 100.0% |' in card
    assert '- flat: 3' in card
    assert '1 models CC0-1.0' in card
    assert meta['counts']['val']['frames'] == 2
    assert sum(meta['depth_histogram']['share']) == pytest.approx(1, abs=1e-3)
    assert json.loads((tmp_path / 'meta.json').read_text()) == meta
    assert cv2.imread(str(tmp_path / 'contact_sheet.jpg')).shape == (8 * 144, 5 * 384, 3)


def test_channels_and_motion_stand_beside_the_frame(tmp_path):
    scene = writer.SceneWriter(tmp_path, 0, 'office')
    normals = np.zeros((24, 32, 3), np.float32)
    normals[:, 5:] = (0.6, 0.0, -0.8)
    labels = np.full((24, 32), 3, np.uint8)
    scene.add(*frame(), VIEW, normals=normals, labels=labels, sequence=(4, 1))
    scene.close({})
    folder = tmp_path / 'train' / 'office-000000'
    stored = cv2.imread(str(folder / '000.normal.png'))[..., ::-1]
    assert stored[3, 4].tolist() == [0, 0, 0]
    assert stored[3, 5].tolist() == [204, 128, 26]
    assert (cv2.imread(str(folder / '000.label.png'), cv2.IMREAD_UNCHANGED) == 3).all()
    notes = json.loads((folder / '000.json').read_text())
    assert (notes['sequence'], notes['step']) == (4, 1)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'recipe': 1}, 'recipe = 1, asked for'),
        ({'recipe': None}, 'recipe = 1, asked for'),  # a folder of before recipes had versions
        ({'channels': ['labels']}, r"channels = \['labels'\], asked for \[\]"),
    ],
)
def test_continuing_with_another_recipe_is_refused(tmp_path, change, message):
    settings = generate.Settings(out=tmp_path)
    generate.prepare(settings)
    writer.SceneWriter(tmp_path, 2, 'room').close({})
    stored = tmp_path / '.settings.json'
    changed = {**json.loads(stored.read_text()), **change}
    stored.write_text(json.dumps({k: v for k, v in changed.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        generate.prepare(settings)


def test_scenes_of_unknown_making_are_not_continued(tmp_path):
    writer.SceneWriter(tmp_path, 2, 'room').close({})
    with pytest.raises(ValueError, match=r'no \.settings\.json'):
        generate.prepare(generate.Settings(out=tmp_path))


def test_continuing_with_another_seed_is_refused(tmp_path):
    settings = generate.Settings(out=tmp_path, seed=4)
    assert generate.prepare(settings) == set()
    writer.SceneWriter(tmp_path, 2, 'room').close({})
    assert generate.prepare(settings) == {2}
    with pytest.raises(ValueError, match='seed = 4, asked for 5'):
        generate.prepare(generate.Settings(out=tmp_path, seed=5))


FAKE_WORKER = """
import json, sys
settings = json.load(open(sys.argv[-2]))
index = int(sys.argv[-1])
if settings['seed'] == 13 and index == 1:
    sys.exit('no furniture left')
for scene in range(index, settings['scenes'], settings['workers']):
    print(json.dumps({'scene': scene}), flush=True)
"""


@pytest.fixture
def fake_python(tmp_path):
    (tmp_path / 'fake.py').write_text(FAKE_WORKER)
    script = tmp_path / 'python'
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/fake.py "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_scenes_of_a_split_are_all_of_it_and_no_others():
    chosen = {name: writer.scenes_of(203, [name]) for name in writer.SPLITS}
    assert sorted(itertools.chain(*chosen.values())) == list(range(203))
    assert writer.scenes_of(203, writer.SPLITS) == list(range(203))
    for name, scenes in chosen.items():
        assert {writer.split_of(scene) for scene in scenes} == {name}
    assert writer.scenes_of(30, ('test', 'val')) == [3, 9, 16, 22, 28]


def test_asking_for_no_scene_is_an_error_and_makes_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r'below 9 is of the split test .* 9 and 22 are test'):
        generate.prepare(generate.Settings(out=tmp_path / 'x', scenes=9, splits=('test',)))
    assert not (tmp_path / 'x').exists()


def test_a_folder_may_be_continued_with_another_split(tmp_path):
    generate.prepare(generate.Settings(out=tmp_path, splits=('test',)))
    writer.SceneWriter(tmp_path, 9, 'room').close({})
    assert generate.prepare(generate.Settings(out=tmp_path, splits=('train',))) == {9}
    stored = json.loads((tmp_path / '.settings.json').read_text())
    assert stored['splits'] == ['train']


def test_workers_share_the_scenes(tmp_path, fake_python):
    settings = generate.Settings(out=tmp_path / 'out', scenes=7, workers=3)
    generate.prepare(settings)
    seen = []
    generate.run_workers(settings, fake_python, lambda notes: seen.append(notes['scene']))
    assert sorted(seen) == list(range(7))


WORKER_WITHOUT_BLENDER = """
import sys
from depth_node.synthesis import worker
worker.make_stage = lambda settings: (None, [])
worker.make_scene = lambda stage, assets, root, seed, scene, *more: {'scene': scene}
sys.exit(worker.main(sys.argv[1:]))
"""


def test_workers_make_each_missing_scene_of_the_splits_once(tmp_path):
    settings = generate.Settings(out=tmp_path, scenes=60, workers=2, splits=('val', 'test'))
    generate.prepare(settings)
    writer.SceneWriter(tmp_path, 22, 'room').close({})
    stored = tmp_path / '.settings.json'
    stored.write_text(json.dumps({**json.loads(stored.read_text()), 'parent': None}))
    made = []
    for index in range(2):
        ended = subprocess.run(
            [sys.executable, '-c', WORKER_WITHOUT_BLENDER, str(stored), str(index)],
            capture_output=True, text=True, check=True)
        made.append([json.loads(line)['scene'] for line in ended.stdout.splitlines()])
    assert sorted(made[0] + made[1]) == [3, 9, 16, 28, 34, 41, 47, 53, 59]
    assert abs(len(made[0]) - len(made[1])) <= 1


def test_failed_worker_is_reported_with_its_last_message(tmp_path, fake_python):
    settings = generate.Settings(out=tmp_path / 'out', scenes=4, workers=2, seed=13)
    generate.prepare(settings)
    with pytest.raises(RenderError, match='worker 1 ended with status 1: no furniture left'):
        generate.run_workers(settings, fake_python, lambda notes: None)


def test_interpreter_without_blender_says_what_to_install(tmp_path):
    missing = tmp_path / 'python'
    missing.write_text('#!/bin/sh\necho "ModuleNotFoundError: No module named bpy" >&2\nexit 1\n')
    missing.chmod(0o755)
    with pytest.raises(RenderError, match=r'bpy==5\.0\.1'):
        generate.find_python(str(missing))

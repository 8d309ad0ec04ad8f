"""Every data set that trains can be measured on, by its name on the command line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
import re
import shutil
import subprocess
import sys

import cv2
from depth_node.cli._datasets import open_reader, parse_spec
from depth_node.evaluation.protocols import Protocol, evaluate
from depth_node.evaluation.readers import DataError
from depth_node.training.datasets import DATASETS, open_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

WRITERS = Path(__file__).resolve().parents[1] / 'training' / 'datasets'
# kind -> options on the command line, and what the truth is known up to
KINDS = {
    'nyu_mat': ('', 'metric'),
    'nyu_densedepth': ('', 'metric'),
    'list': ('', 'metric'),
    'kitti': (',split=val', 'metric'),
    'diode': (',split=val', 'metric'),
    'make3d': (',split=test', 'metric'),
    'sunrgbd': ('', 'metric'),
    'megadepth': (',split=val', 'scale'),
    'diw': ('', 'pairs'),
    'redweb': (',split=val', 'affine'),
    'hypersim': ('', 'metric'),
    'vkitti2': (',split=val', 'metric'),
    'folder': ('', 'metric'),
    'bag': (',split=all', 'metric'),
}
NEEDED = {'nyu_mat': 'h5py', 'hypersim': 'h5py', 'megadepth': 'h5py', 'make3d': 'scipy',
          'sunrgbd': 'scipy', 'bag': 'rosbags'}  # fmt: skip


def writer(kind):
    name = {'list': 'list_file'}.get(kind, kind)
    path = WRITERS / f'write_{name}.py'
    spec = importlib.util.spec_from_file_location(f'evaluated_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """Return a function that writes a data set once and gives its root."""
    roots = {}

    def root_of(kind):
        if kind in NEEDED:
            pytest.importorskip(NEEDED[kind])
        if kind not in roots:
            roots[kind] = tmp_path_factory.mktemp(kind)
            writer(kind)(roots[kind], frames=4)
        return roots[kind]

    return root_of


def write_rendered(root, split, scene, names):
    folder = root / split / scene
    folder.mkdir(parents=True)
    for name in names:
        rgb = np.full((24, 40, 3), 90, np.uint8)
        cv2.imwrite(str(folder / f'{name}.jpg'), rgb)
        cv2.imwrite(str(folder / f'{name}.depth.png'), np.full((24, 40), 1500, np.uint16))
        camera = {'fx': 30.0, 'fy': 31.0, 'cx': 19.0, 'cy': 12.5, 'width': 40, 'height': 24}
        (folder / f'{name}.json').write_text(json.dumps(camera))


class Truth:
    """Predicts the reader's truth times a factor, frame by frame, at the picture's size."""

    def __init__(self, reader, factor=1.1):
        self.depths, self.factor = [sample.true_depth for sample in reader], factor

    def run(self, rgb, camera, stamp=0.0):
        if camera is not None:
            assert camera.size_hw == rgb.shape[:2]

        class Frame:
            depth = self.factor * self.depths.pop(0)
            notes = ()

        return Frame


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_reads_as_the_data_set_says(written, kind):
    options, truth = KINDS[kind]
    root = written(kind)
    reader = open_reader(f'{kind}:{root}{options}')
    split = options.removeprefix(',split=') or 'test'
    if split == 'all':
        split = 'train'
    dataset = open_dataset(kind, root, split)
    assert reader.truth == truth
    assert dataset.note in reader.note or kind == 'bag'
    assert len(reader) >= len(dataset) > 0
    found = {sample.name: sample for sample in reader}
    for index in range(len(dataset)):
        frame, name = dataset.read(index), dataset.name(index)
        known = frame.depth > 0
        if frame.rel_inv_depth is None and not known.any() and frame.pairs is None:
            assert name in {item.name for item in reader.skipped}  # MegaDepth's ordinal maps
            continue
        sample = found[name]
        assert (sample.rgb == frame.rgb).all()
        assert sample.camera == frame.camera
        if truth == 'metric':
            assert (np.isfinite(sample.true_depth) == known).all()
            assert (sample.true_depth[known] == frame.depth[known]).all()
        elif truth == 'scale':
            assert np.nanmedian(sample.true_depth) == pytest.approx(1, rel=1e-5)
            ratio = sample.true_depth[known] / frame.depth[known]
            assert np.ptp(ratio) < 1e-5 * ratio.mean()
        elif truth == 'affine':
            use = np.isfinite(frame.rel_inv_depth) & (frame.rel_inv_depth > 0)
            product = sample.true_depth[use] * frame.rel_inv_depth[use]
            assert np.ptp(product) < 1e-5 * product.mean()
            assert np.nanmedian(sample.true_depth) == pytest.approx(1, rel=1e-5)
        else:
            assert np.isnan(sample.true_depth).all()
            assert (sample.pairs.uv == frame.pairs.uv).all()
            assert (sample.pairs.relation == frame.pairs.relation).all()


@pytest.mark.parametrize('kind', [k for k, (_, truth) in KINDS.items() if truth != 'pairs'])
def test_a_known_error_is_measured_on_every_kind(written, kind):
    options, truth = KINDS[kind]
    reader = open_reader(f'{kind}:{written(kind)}{options}')
    result = evaluate(Truth(reader), reader, Protocol(max_depth=1000.0))
    expected = {'metric': ('none', 'median', 'affine'), 'scale': ('median', 'affine'),
                'affine': ('affine',)}[truth]  # fmt: skip
    assert result.alignments == expected
    for align in expected:
        row = result.summary(align, 'pooled')
        error = 0.1 if align == 'none' else 0
        assert row['abs_rel'] == pytest.approx(error, abs=1e-5), align
    assert reader.note in result.note


def test_diw_gives_whdr(written):
    reader = open_reader(f'diw:{written("diw")}')
    relation = [int(sample.pairs.relation[0]) for sample in reader]
    uv = [sample.pairs.uv[0] for sample in reader]

    class Oracle:
        def __init__(self, right):
            self.right, self.index = right, 0

        def run(self, rgb, camera, stamp=0.0):
            i = self.index
            self.index += 1
            depth = np.full(rgb.shape[:2], 2.0, np.float32)
            a_farther = relation[i] == (1 if self.right[i] else -1)
            depth[int(uv[i][1]), int(uv[i][0])] = 3.0 if a_farther else 1.0

            class Frame:
                notes = ()

            Frame.depth = depth
            return Frame

    count = len(relation)
    right = [i % 2 == 0 for i in range(count)]
    result = evaluate(Oracle(right), reader, Protocol())
    assert result.summary('none', 'pooled')['whdr'] == pytest.approx(right.count(False) / count)


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_goes_through_the_command(cli_here, tiny_card, written, kind):
    tiny_card()
    options, truth = KINDS[kind]
    result = cli_here('evaluate', '--model', 'tiny', '--data', f'{kind}:{written(kind)}{options}',
                      '--backend', 'onnxruntime', '--limit', 2, '--json', '--max-depth', 300,
                      '--out', f'report_{kind}')  # fmt: skip
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    row = data['rows'][0]
    assert row['whdr' if truth == 'pairs' else 'abs_rel'] is not None
    assert row['truth']
    report = Path(f'report_{kind}/report.md').read_text()
    assert data['datasets'][0]['note'] in report


def test_a_data_set_without_depth_is_refused(written):
    with pytest.raises(DataError, match='no truth in its first'):
        open_reader(f'sfm_triptych:{written("sfm_triptych")},split=val')


@pytest.mark.parametrize(
    ('protocol', 'options', 'truth'),
    [
        ('nyu_eigen', '', 'raw'),
        ('nyu_fcrn', '', 'filled'),
        ('nyu_densedepth', '', 'filled'),
        ('nyu_eigen', ',truth=filled', 'filled'),
        ('default', ',truth=raw', 'raw'),
    ],
)
def test_trap_04_the_protocol_chooses_the_truth_and_the_report_names_it(
    written, protocol, options, truth
):
    reader = open_reader(f'nyu_mat:{written("nyu_mat")}{options}', protocol=protocol)
    assert f'{truth} truth' in reader.note
    dataset = open_dataset('nyu_mat', written('nyu_mat'), 'test', truth=truth)
    sample = next(iter(reader))
    assert (np.isfinite(sample.true_depth) == (dataset.read(0).depth > 0)).all()


def test_trap_12_pictures_cropped_by_the_data_set_are_refused(written):
    for protocol in ('kitti_garg', 'kitti_kb'):
        with pytest.raises(DataError, match='drop the option crop'):
            open_reader(f'kitti:{written("kitti")},split=val,crop=kb', protocol=protocol)


@pytest.mark.parametrize(
    ('protocol', 'options', 'depth'),
    [('kitti_garg', '', 'x'), ('kitti_eigen', '', 'x'), ('kitti_50m', '', 'x'),
     ('kitti_garg', ',velodyne_depth=z', 'z'), ('default', '', 'z')],
)  # fmt: skip
def test_projected_points_of_kitti_are_as_deep_as_in_the_rows_to_compare(
    written, protocol, options, depth
):
    root = written('kitti')
    text = f'kitti:{root},split=val,truth=velodyne,split_file={root}/val_files.txt{options}'
    assert f'velodyne depth ({depth})' in open_reader(text, protocol=protocol).note


def test_make3d_c2_reads_beyond_70_metres(written):
    assert 'to 70 m' in open_reader(f'make3d:{written("make3d")}', protocol='make3d_c1').note
    assert 'to inf m' in open_reader(f'make3d:{written("make3d")}', protocol='make3d_c2').note


def test_a_broken_frame_is_skipped_and_named(written, tmp_path):
    shutil.copytree(written('folder'), tmp_path / 'copy')
    pictures = sorted((tmp_path / 'copy').rglob('*_depth_mm.png'))
    pictures[0].write_bytes(pictures[0].read_bytes()[:60])
    reader = open_reader(f'folder:{tmp_path / "copy"},split=all')
    count = len(reader)
    assert len(list(reader)) == count - 1
    assert pictures[0].name in reader.skipped[0].reason


def test_rendered_root_split_and_scene(tmp_path):
    write_rendered(tmp_path, 'test', 'room_0', ['0000', '0001'])
    write_rendered(tmp_path, 'test', 'room_01', ['0000'])
    write_rendered(tmp_path, 'train', 'table_9', ['0000'])

    def names(spec):
        reader = open_reader(spec)
        return reader.name, [sample.name for sample in reader]

    test = ['room_0/0000', 'room_0/0001', 'room_01/0000']
    assert names(f'rendered:{tmp_path}') == ('rendered/test', test)
    assert names(f'rendered:{tmp_path}/test') == ('rendered/test', test)
    assert names(f'rendered:{tmp_path}/train') == ('rendered/train', ['table_9/0000'])
    assert names(f'rendered:{tmp_path},split=train') == ('rendered/train', ['table_9/0000'])
    assert names(f'rendered:{tmp_path}/test/room_0') == ('rendered/room_0', test[:2])
    with pytest.raises(DataError, match='val'):
        open_reader(f'rendered:{tmp_path}/val')
    with pytest.raises(DataError, match='no frames of scene'):
        open_reader(f'rendered:{tmp_path}/test/room_7')


def test_a_plain_folder_is_measured_whole_with_k(tmp_path):
    for name in 'abcde':
        cv2.imwrite(str(tmp_path / f'{name}.png'), np.full((24, 40, 3), 90, np.uint8))
        np.save(tmp_path / f'{name}.npy', np.full((24, 40), 1.5))
    reader = open_reader(f'folder:{tmp_path}', intrinsics=(30.0, 31.0, 19.0, 12.5))
    samples = list(reader)
    assert sorted(sample.name for sample in samples) == list('abcde')
    assert samples[0].camera.fy == 31.0
    assert reader.name == tmp_path.name
    with_k = open_reader(f'folder:{tmp_path},k=30,31,19,12.5')
    assert next(iter(with_k)).camera == samples[0].camera
    assert len(open_reader(f'folder:{tmp_path},split=test')) < 5


def test_specs_are_taken_apart():
    spec = parse_spec('nyu_mat:/a,b/c=1,d,split=val,truth=raw,val_share=0.2,labels=false')
    assert (spec.kind, spec.path, spec.split) == ('nyu_mat', '/a,b/c=1,d', 'val')
    assert spec.options == {'truth': 'raw', 'val_share': 0.2, 'labels': False}
    assert parse_spec('folder:x,k=1,2,3.5,4').options == {'k': [1, 2, 3.5, 4]}
    assert parse_spec('make3d:x,far_m=.inf').options == {'far_m': float('inf')}
    assert parse_spec('motorcycle').path == ''


def test_a_path_without_its_kind_gets_the_kind_suggested(tmp_path):
    writer('folder')(tmp_path, frames=2)
    with pytest.raises(DataError, match=f'; write folder:{re.escape(str(tmp_path))}; expected'):
        open_reader(str(tmp_path))


@pytest.mark.parametrize(
    ('spec', 'reason'),
    [
        ('nyu:here', "unknown kind 'nyu'; expected KIND:FOLDER, the kind one of: aloe, bag"),
        ('nyu_mat', 'the folder is missing; write nyu_mat:FOLDER'),
        ('osd', 'the folder is missing'),
        ('osd:here,split=test', 'osd has no options'),
        ('folder:/does/not/exist', 'no such folder'),
        ('folder:here,split=a,split=b', 'given twice'),
        ('folder:here,unit=[', 'option unit'),
        ('folder:/tmp,colour=red', "option 'colour' is not known"),
        ('rendered:/does/not/exist', 'no such folder'),
        ('diode:/does/not/exist,split=all', '/does/not/exist'),
    ],
)
def test_wrong_names_are_explained(spec, reason):
    with pytest.raises(DataError, match=reason):
        open_reader(spec)


def test_every_registered_kind_is_tested_here():
    assert set(KINDS) | {'rendered', 'sfm_triptych'} == set(DATASETS)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='ab:,=/[]{}"\'&*!%@-1. \n\t', max_size=30))
def test_no_name_breaks_the_parser(text):
    try:
        spec = parse_spec(f'folder:{text}')
    except DataError:
        return
    assert all(name.isidentifier() for name in spec.options)


def test_data_sets_are_measured_without_torch(tmp_path):
    """A robot has numpy and a runtime; its own recordings must be measurable there."""
    write_rendered(tmp_path, 'test', 'room_0', ['0000'])
    blocked = ['torch', 'lightning', 'h5py', 'scipy']
    code = (
        f'import sys; sys.modules.update(dict.fromkeys({blocked!r})); '
        'from depth_node.cli._datasets import open_reader; '
        'from depth_node.evaluation import protocols, report; '
        f'print(len(list(open_reader("rendered:{tmp_path}"))))'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == '1'

"""Resizing inside the graph: the pipeline over the new file gives what it gives over the old."""

from __future__ import annotations

from dataclasses import replace
import json
import math

import cv2
from depth_node.backends import check_batch, open_backend, self_check
from depth_node.camera import Camera
from depth_node.cli import main
from depth_node.export import fuse
from depth_node.export.fuse import FuseError, fuse_resize, resize_matrix
from depth_node.export.lint import lint
from depth_node.filters import FilterSettings
from depth_node.model_card import FileSpec, ModelCard, check_input, file_sha256
from depth_node.pipeline import DepthPipeline
from depth_node.postprocess import as_map
from depth_node.preprocess import ResizePlan
from depth_node.scale import Scale
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

NETWORK_HW = (24, 40)
RANGES = {'depth': (1.0, 2.0), 'canonical_depth': (1.0, 2.0), 'log_depth': (-0.3, 1.0),
          'inv_depth': (0.3, 0.8), 'rel_depth': (1.0, 2.0), 'rel_inv_depth': (0.3, 0.8)}


@pytest.fixture
def make(tmp_path):
    """Return a maker of networks whose output depends on the place, with their cards."""
    def build(*, layout='uint8_nhwc', begin='cast', colour='rgb', resize='stretch',
              kind='depth', stride=1, rank=4, dynamic=False, extra=False, holes=False,
              opset=17, precision='fp32', keys=('fp32',)):
        h, w = ('h', 'w') if dynamic else NETWORK_HW
        nodes, constants = [], []

        def constant(value, name=None):
            name = name or f'c{len(constants)}'
            constants.append(numpy_helper.from_array(np.asarray(value), name))
            return name

        def add(op, *inputs, out=None, **attributes):
            out = out or f't{len(nodes)}'
            nodes.append(helper.make_node(op, inputs, [out], name=f'n{len(nodes)}', **attributes))
            return out

        if layout == 'float32_nchw':
            source = helper.make_tensor_value_info('image', TensorProto.FLOAT, [1, 3, h, w])
            last = add('Mul', 'image', constant(np.float32(0.5)))
        else:
            source = helper.make_tensor_value_info('image', TensorProto.UINT8, [1, h, w, 3])
            kind_of_float = TensorProto.FLOAT16 if begin == 'half' else TensorProto.FLOAT
            if begin in ('transpose', 'two users'):
                last = add('Transpose', 'image', perm=[0, 3, 1, 2])
                last = add('Cast', last, to=kind_of_float)
            else:
                last = add('Cast', 'image', to=kind_of_float)
            if begin == 'two users':
                again = add('Transpose', add('Cast', 'image', to=kind_of_float),
                            perm=[0, 3, 1, 2])
                last = add('Mul', add('Add', last, again), constant(np.float32(0.5)))
            if begin == 'half':
                last = add('Mul', last, constant(np.float16(1)))
                last = add('Cast', last, to=TensorProto.FLOAT)
            if begin == 'nhwc':  # something is done before the transposition
                last = add('Mul', last, constant(np.float32([0.9, 1.0, 1.1])))
            if begin in ('cast', 'half', 'nhwc'):
                last = add('Transpose', last, perm=[0, 3, 1, 2])
            last = add('Mul', last, constant(np.float32(1 / 128)))
            last = add('Sub', last, constant(np.float32(1)))
        rng = np.random.default_rng(7)
        weights = rng.normal(size=(6, 3, 3, 3)).astype(np.float32) / 4
        last = add('Relu', add('Conv', last, constant(weights), pads=[1] * 4,
                               strides=[stride] * 2))
        low, high = RANGES[kind]
        head = constant(rng.normal(size=(1, 6, 3, 3)).astype(np.float32))
        last = add('Conv', last, head, pads=[1] * 4)
        last = add('Sigmoid', last)
        if holes:  # from -0.4 to 2: below 0 there is no depth
            low, high = -0.4, 2.0
        last = add('Mul', last, constant(np.float32(high - low)))
        last = add('Add', last, constant(np.float32(low)))
        names = ['depth']
        shape = [1, 1, 'a', 'b'] if dynamic else [1, 1, h // stride, w // stride]
        if extra:
            add('Sigmoid', add('Mul', last, constant(np.float32(3))), out='sure')
            add('Sigmoid', add('Sub', last, constant(np.float32(1.5))), out='sky')
            names += ['sure', 'sky']
        if rank == 3:
            last = add('Squeeze', last, constant(np.int64([0])))
        add('Identity', last, out='depth')
        shapes = {'depth': shape[4 - rank:], 'sure': shape, 'sky': shape}
        model = helper.make_model(helper.make_graph(
            nodes, 'g', [source], [helper.make_tensor_value_info(
                name, TensorProto.FLOAT, shapes[name]) for name in names], constants),
            opset_imports=[helper.make_opsetid('', opset)], ir_version=8)
        path = tmp_path / 'net.onnx'
        onnx.save(model, str(path))
        files = {}
        for key in keys:
            file = path if key == 'fp32' else path.with_suffix(f'.{key}.onnx')
            onnx.save(model, str(file))
            files[key] = {'file': file.name, 'sha256': file_sha256(file)}
        spec = {'name': 'image', 'layout': layout, 'colour': colour, 'resize': resize}
        if layout == 'float32_nchw':
            spec.update(mean=[120.4, 110.0, 100.0], std=[64.0, 60.0, 56.0])
        if dynamic:
            spec.update(multiple_of=8, min_hw=[16, 16], max_hw=[32, 48])
        else:
            spec['size_hw'] = list(NETWORK_HW)
        metric = not kind.startswith('rel')
        output = {'name': 'depth', 'kind': kind, 'unit': 'm' if metric else 'none'}
        if metric:
            output['range_m'] = [0.1, 20.0]
        if kind == 'canonical_depth':
            output['canonical_focal_px'] = 35.0
        if extra:
            output.update(confidence='sure', sky='sky')
        card = ModelCard.from_dict({
            'card_version': 1, 'name': 'net', 'licence': 'Apache-2.0', 'files': files,
            'input': spec, 'output': output, 'provenance': {'command': 'a test'},
            'metrics': {'fp32': {'data': {'frames': 3}}}}, tmp_path / 'net.yaml')
        card.save()
        return card
    return build


def camera(size_hw):
    height, width = size_hw
    return Camera(size_hw, 0.8 * width, 0.9 * width, width / 2 - 3, height / 2 + 2)


def frames(size_hw):
    rng = np.random.default_rng(5)
    yield check_input(11, size_hw)[0]
    yield rng.integers(0, 256, (*size_hw, 3), np.uint8)
    yield np.full((*size_hw, 3), 255, np.uint8)


def compared(old, new, size_hw, backend='onnxruntime', scale=None):
    """Run both pipelines; return relative differences and the share of other holes."""
    off = FilterSettings(flying_pixel_angle_deg=0, flying_pixel_jump=0)
    worst, holes, found = 0.0, 0.0, []
    with open_backend(old, backend, 'fp32') as a, open_backend(new, backend, 'fp32') as b:
        assert self_check(b).ok
        first, second = (DepthPipeline(each, filters=off, scale=scale) for each in (a, b))
        for rgb in frames(size_hw):
            wanted, got = (
                replace(frame, depth=frame.depth.copy())  # the next run overwrites it
                for frame in (each.run(rgb, camera(size_hw)) for each in (first, second)))
            known = np.isfinite(wanted.depth) & np.isfinite(got.depth)
            worst = max(worst, float(np.mean(np.abs(
                got.depth[known] / wanted.depth[known] - 1))))
            holes = max(holes, float(np.mean(
                np.isnan(wanted.depth) != np.isnan(got.depth))))
            found.append((wanted, got))
            if wanted.confidence is not None:
                np.testing.assert_allclose(got.confidence, wanted.confidence, atol=2e-3)
    return worst, holes, found


def is_identity(card, size_hw):
    plan = ResizePlan(card.input, size_hw)
    assert (plan.network_hw, plan.window) == (size_hw, (0, 0, *size_hw))
    rgb = next(frames(size_hw))
    np.testing.assert_array_equal(plan.to_input(rgb)[0], rgb)


# --- the matrices


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90),
       st.booleans())
def test_matrices_are_what_cv2_computes(height, width, rows, columns, area):
    if (height, width) == (rows, columns):
        return
    picture = np.random.default_rng(height * width).random((height, width), np.float32)
    wanted = cv2.resize(picture, (columns, rows),
                        interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR)
    shrinks = rows <= height and columns <= width
    left, right = (resize_matrix(*each, area=area, shrinks=shrinks)
                   for each in ((rows, height), (columns, width)))
    np.testing.assert_allclose(left @ picture @ right.T, wanted, atol=2e-6)
    for matrix in (left, right):
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
        assert matrix.min() >= 0


# --- parity of the pipeline


SIZES = [(48, 64), (61, 97), (17, 29), (24, 53), (120, 31),
         (48, 80), (60, 100), (78, 120), (96, 200)]  # the last four by whole blocks


@pytest.mark.parametrize('upsample', [False, True])
@pytest.mark.parametrize('resize', ['stretch', 'pad', 'keep_aspect'])
@pytest.mark.parametrize('size_hw', SIZES)
def test_every_policy_and_size(make, tmp_path, resize, size_hw, upsample):
    card = make(resize=resize, dynamic=resize == 'keep_aspect', kind='canonical_depth')
    plan = ResizePlan(card.input, size_hw)
    rows, columns = plan.window[2:]
    if not upsample and resize == 'stretch' and size_hw == (120, 31):
        with pytest.raises(FuseError, match=r'the aspect differs; where the aspect.*--upsample'):
            fuse_resize(card, size_hw, tmp_path / 'new.onnx')
        assert not (tmp_path / 'new.onnx').exists()
        return
    new, parity = fuse_resize(card, size_hw, tmp_path / 'new.onnx', upsample=upsample)
    is_identity(new, size_hw)
    worst, holes, found = compared(card, new, size_hw)
    assert holes == 0
    # cv2's bilinear is a grey level more or less in some pixels
    assert worst < 3e-3
    interpolated = plan.blocks is not None and (
        size_hw[0] // plan.blocks[0], size_hw[1] // plan.blocks[1]) != (rows, columns)
    if rows <= size_hw[0] and columns <= size_hw[1] and not interpolated:
        assert worst < 4e-4
    assert parity['fp32'].mean_rel < 3e-3
    assert all(got.depth.shape == size_hw for _, got in found)
    with open_backend(new, 'onnxruntime', 'fp32') as backend:
        map_hw = as_map(backend.run(next(frames(size_hw))[None])['depth']).shape
    assert map_hw == (size_hw if upsample else (rows, columns))
    share = math.sqrt(rows / size_hw[0] * columns / size_hw[1])
    assert new.output.canonical_focal_px == pytest.approx(35.0 / share)


@pytest.mark.parametrize('kind', sorted(RANGES))
def test_filters_work_on_the_networks_grid_as_before(make, tmp_path, kind):
    card = make(kind=kind, holes=True)
    new, _ = fuse_resize(card, (50, 70), tmp_path / 'new.onnx')
    assert (new.output.kind, new.output.name) == (kind, 'depth')
    with open_backend(card, 'onnxruntime', 'fp32') as a, open_backend(
            new, 'onnxruntime', 'fp32') as b:
        first, second = DepthPipeline(a), DepthPipeline(b)
        differences = []
        for rgb in frames((50, 70)):
            wanted, got = (each.run(rgb, camera((50, 70))) for each in (first, second))
            assert wanted.removed.keys() == got.removed.keys()
            same = np.isfinite(wanted.depth) == np.isfinite(got.depth)
            assert same.mean() > 0.98
            known = np.isfinite(wanted.depth) & np.isfinite(got.depth)
            differences.append(np.abs(got.depth[known] / wanted.depth[known] - 1))
        every = np.concatenate(differences)
        assert every.size > 0.1 * 3 * 50 * 70
        assert every.mean() < 5e-3


@pytest.mark.parametrize('kind', sorted(RANGES))
@pytest.mark.parametrize('stride', [1, 2])
def test_every_kind(make, tmp_path, kind, stride):
    card = make(kind=kind, stride=stride, rank=3 if stride == 2 else 4)
    new, _ = fuse_resize(card, (50, 70), tmp_path / 'new.onnx', upsample=True)
    assert new.output.kind == {'log_depth': 'depth', 'inv_depth': 'depth'}.get(kind, kind)
    scale = Scale('fixed', 3.0, 0.0, 'inv_depth') if kind == 'rel_inv_depth' else None
    worst, holes, found = compared(card, new, (50, 70), scale=scale)
    assert (holes, worst < 2e-4) == (0, True)
    assert np.ptp(found[1][1].depth) > 0.05  # the map is not flat


@pytest.mark.parametrize('resize', ['stretch', 'pad'])
@pytest.mark.parametrize('kind', ['depth', 'inv_depth', 'rel_inv_depth', 'canonical_depth'])
def test_holes_are_where_they_were(make, tmp_path, kind, resize):
    card = make(kind=kind, holes=True, resize=resize)
    new, _ = fuse_resize(card, (55, 93), tmp_path / 'new.onnx', upsample=True)
    worst, holes, found = compared(card, new, (55, 93))
    shares = [float(np.isnan(got.depth).mean()) for _, got in found]
    assert 0.05 < min(shares[:2])
    assert max(shares[:2]) < 0.95
    assert holes < 0.02  # a pixel of the map that is near 0 may fall to the other side
    assert worst < 5e-3


@pytest.mark.parametrize('upsample', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('resize', ['stretch', 'pad'])
def test_confidence_and_sky_come_along(make, tmp_path, stride, resize, upsample):
    card = make(extra=True, stride=stride, resize=resize)
    if not upsample and (resize, stride) == ('pad', 2):
        with pytest.raises(FuseError, match=r'cannot be cut off at a pixel.*--upsample'):
            fuse_resize(card, (52, 75), tmp_path / 'new.onnx')
        return
    new, _ = fuse_resize(card, (52, 75), tmp_path / 'new.onnx', upsample=upsample)
    worst, _, found = compared(card, new, (52, 75))
    assert worst < 5e-4
    for wanted, got in found[:2]:
        assert 0.02 < np.isposinf(wanted.depth).mean() < 0.98
        assert np.mean(np.isposinf(wanted.depth) != np.isposinf(got.depth)) < 0.01
        assert np.ptp(got.confidence) > 0.01


@pytest.mark.parametrize('begin', ['cast', 'transpose', 'nhwc', 'half', 'two users'])
@pytest.mark.parametrize('colour', ['rgb', 'bgr'])
def test_every_beginning_of_a_network(make, tmp_path, begin, colour):
    card = make(begin=begin, colour=colour)
    new, _ = fuse_resize(card, (48, 97), tmp_path / 'new.onnx')
    assert new.input.colour == 'rgb'  # the CPU swaps nothing
    worst, _, _ = compared(card, new, (48, 97))
    assert worst < 2e-4
    assert [each for each in lint(tmp_path / 'new.onnx') if each.severity == 'error'] == []


@pytest.mark.parametrize('resize', ['stretch', 'pad'])
@pytest.mark.parametrize('colour', ['rgb', 'bgr'])
@pytest.mark.parametrize('size_hw', [(48, 97), (23, 40), NETWORK_HW])
def test_float_input_becomes_the_cameras_bytes(make, tmp_path, colour, resize, size_hw):
    card = make(layout='float32_nchw', colour=colour, resize=resize)
    new, _ = fuse_resize(card, size_hw, tmp_path / 'new.onnx', upsample=True)
    assert new.input.layout == 'uint8_nhwc'
    is_identity(new, size_hw)
    worst, _, _ = compared(card, new, size_hw)
    assert worst < 1e-3


@pytest.mark.parametrize('kind', ['canonical_depth', 'log_depth'])
def test_openvino_computes_the_same(make, tmp_path, kind):
    pytest.importorskip('openvino')
    card = make(kind=kind, holes=kind == 'canonical_depth', resize='pad')
    new, _ = fuse_resize(card, (61, 84), tmp_path / 'new.onnx', upsample=True)
    worst, holes, _ = compared(card, new, (61, 84), 'openvino')
    assert (worst < 5e-3, holes < 0.02) == (True, True)


def test_bundled_network_on_a_rendered_picture(repository, tmp_path):
    pictures = sorted((repository / 'demo' / 'clip').glob('*.jpg'))
    if not pictures or not (repository / 'models' / 'small.yaml').is_file():
        pytest.skip('the clone has no demo clip or no bundled model')
    card = ModelCard.load(repository / 'models' / 'small.yaml')
    card = replace(card, precisions={'fp32': card.precisions['fp32']})
    rgb = cv2.imread(str(pictures[len(pictures) // 2]))[..., ::-1]
    size_hw = (300, 404)
    rgb = cv2.resize(rgb, size_hw[::-1], interpolation=cv2.INTER_AREA)
    new, _ = fuse_resize(card, size_hw, tmp_path / 'small.onnx')
    off = FilterSettings(flying_pixel_angle_deg=0, flying_pixel_jump=0)
    for name in ('onnxruntime', 'openvino'):
        pytest.importorskip(name)
        with open_backend(card, name, 'fp32') as a, open_backend(new, name, 'fp32') as b:
            wanted, got = (DepthPipeline(each, filters=off).run(rgb, camera(size_hw)).depth
                           for each in (a, b))
            np.testing.assert_array_equal(np.isfinite(got), np.isfinite(wanted))
            known = np.isfinite(wanted)
            np.testing.assert_allclose(got[known], wanted[known], rtol=1e-3)


def test_a_shift_of_inverse_depth_comes_after_resizing(make, tmp_path):
    """What the docs say of relative networks: the order differs, and only between two cells."""
    card = make(kind='rel_inv_depth')
    new, _ = fuse_resize(card, (96, 160), tmp_path / 'new.onnx', upsample=True)
    worst, _, found = compared(card, new, (96, 160), scale=Scale('fixed', 1.0, 0.5, 'inv_depth'))
    assert 1e-4 < worst < 0.05
    for wanted, got in found:
        low, high = np.nanmin(wanted.depth), np.nanmax(wanted.depth)
        assert low * 0.98 < np.nanmin(got.depth) <= np.nanmax(got.depth) < high * 1.02


# --- the card and the files


def test_card_says_what_it_is_and_leaves_the_measurements(make, tmp_path):
    card = make(kind='log_depth', keys=('fp32', 'fp16', 'int8', 'int8_trt'), extra=True)
    new, parity = fuse_resize(card, (48, 64), tmp_path / 'sub' / 'new.onnx', name='mine',
                              command='typed by a user')
    loaded = ModelCard.load(tmp_path / 'sub' / 'new.yaml')
    assert loaded == new
    assert (new.name, new.licence, new.metrics) == ('mine', 'Apache-2.0', {})
    assert new.provenance['command'] == 'typed by a user'
    origin = new.provenance['resize_of']
    assert origin['name'] == 'net'
    assert origin['sha256'] == {key: spec.sha256 for key, spec in card.precisions.items()}
    assert origin['provenance'] == {'command': 'a test'}
    assert (origin['network_hw'], origin['kind']) == ([24, 40], 'log_depth')
    assert (origin['upsample'], new.output.kind) == (False, 'log_depth')
    assert list(new.precisions) == list(parity) == ['fp32', 'fp16', 'int8', 'int8_trt']
    for key in new.precisions:
        path = new.verify_file(key)
        assert ModelCard.from_onnx_metadata(path).input == new.input
    assert new.check.size_hw == (48, 64)
    assert sorted(path.name for path in (tmp_path / 'sub').iterdir()) == [
        'new.fp16.onnx', 'new.int8.onnx', 'new.int8_trt.onnx', 'new.onnx', 'new.yaml']
    with open_backend(new, 'onnxruntime', 'fp32') as backend:
        assert self_check(backend).ok
        values = backend.run(check_batch(new.input, new.check.seed, (48, 64)))['depth']
    assert new.check.mean == pytest.approx(float(values.mean()), abs=1e-5)
    assert new.check.std == pytest.approx(float(values.std()), abs=1e-5)
    assert new.check.std > 0.01


def test_fp16_file_is_joined_in_float(make, tmp_path):
    from depth_node.export.quantize import halve_onnx

    card = make(kind='canonical_depth', keys=('fp32', 'fp16'))
    path = card.precisions['fp16'].path
    halve_onnx(card.precisions['fp32'].path, path,
               [check_input(seed, NETWORK_HW)[0] for seed in range(2)])
    card = replace(card, precisions={
        **card.precisions, 'fp16': FileSpec(path, file_sha256(path))})
    half = {each.name for each in onnx.load(str(path)).graph.initializer
            if each.data_type == TensorProto.FLOAT16}
    assert half
    new, parity = fuse_resize(card, (64, 86), tmp_path / 'new.onnx')
    assert parity['fp16'].mean_rel < 2e-3
    for key in ('fp32', 'fp16'):
        assert lint(new.precisions[key].path) == ()
    joined = onnx.load(str(new.precisions['fp16'].path)).graph
    kinds = {each.name: each.data_type for each in joined.initializer}
    assert half <= {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16}
    assert all(kind != TensorProto.FLOAT16 for name, kind in kinds.items()
               if name.startswith('resize/'))


def test_tensorrt_rtx_builds_it(make, tmp_path):
    rtx = pytest.importorskip(
        'tensorrt_rtx', reason="tensorrt_rtx is not installed: pip install '.[rtx]' (95 MB)")
    from depth_node.backends.tensorrt_build import BuildRequest, build_plan

    for upsample, options in (
            (False, {'kind': 'canonical_depth', 'begin': 'transpose', 'resize': 'pad'}),
            (True, {'kind': 'canonical_depth', 'begin': 'transpose', 'extra': True}),
            (True, {'kind': 'rel_inv_depth', 'resize': 'keep_aspect', 'dynamic': True}),
            (True, {'kind': 'log_depth', 'layout': 'float32_nchw', 'colour': 'bgr',
                    'resize': 'pad', 'stride': 2})):
        new, _ = fuse_resize(make(**options), (61, 97), tmp_path / 'new.onnx', upsample=upsample)
        assert [each for each in lint(new.precisions['fp32'].path)] == []
        for sm in (86, 89):
            assert build_plan(rtx, BuildRequest(new.verify_file('fp32'), target_sm=sm))


# --- what cannot be joined


@pytest.mark.parametrize('upsample', [False, True])
def test_nothing_to_do(make, tmp_path, upsample):
    with pytest.raises(FuseError, match='for pictures of 40x24 nothing is resized'):
        fuse_resize(make(), NETWORK_HW, tmp_path / 'new.onnx', upsample=upsample)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['net.onnx', 'net.yaml']


@pytest.mark.parametrize(('options', 'size_hw', 'name', 'message'), [
    ({'opset': 12}, (48, 64), 'new.onnx', 'opset 12, 13 or later'),
    ({}, (4, 64), 'new.onnx', 'sides of 8 to 8192'),
    ({}, (48, 64), 'new.bin', r'ends in \.onnx'),
])
def test_refusals(make, tmp_path, options, size_hw, name, message):
    with pytest.raises(FuseError, match=message):
        fuse_resize(make(**options), size_hw, tmp_path / 'out' / name)
    assert not (tmp_path / 'out' / name).exists()


def edited(card, change):
    path = card.precisions['fp32'].path
    model = onnx.load(str(path))
    change(model.graph)
    onnx.save(model, str(path))
    return replace(card, precisions={
        'fp32': replace(card.precisions['fp32'], sha256=file_sha256(path))})


def test_uint8_that_goes_elsewhere_than_into_a_cast(make, tmp_path):
    def change(graph):
        graph.node[0].op_type = 'Cast'
        del graph.node[0].attribute[:]
        graph.node[0].attribute.append(helper.make_attribute('to', TensorProto.INT32))
        graph.node.insert(1, helper.make_node('Cast', ['t0'], ['f'], to=TensorProto.FLOAT))
        graph.node[2].input[0] = 'f'
    with pytest.raises(FuseError, match='casts the picture to INT32; a float is expected'):
        fuse_resize(edited(make(), change), (48, 64), tmp_path / 'new.onnx')

    def flip(graph):
        graph.node.insert(0, helper.make_node(
            'Reshape', ['image', 'shape'], ['again'], name='odd'))
        graph.node[1].input[0] = 'again'
        graph.initializer.append(numpy_helper.from_array(np.int64([1, 24, 40, 3]), 'shape'))
    with pytest.raises(FuseError, match='Reshape odd takes uint8; a Cast to float'):
        fuse_resize(edited(make(), flip), (48, 64), tmp_path / 'new.onnx')


def test_a_graph_that_computes_something_else_is_not_kept(make, tmp_path, monkeypatch):
    monkeypatch.setattr(fuse, 'resize_matrix', lambda size, source, **_: np.eye(
        size, source, dtype=np.float32))
    with pytest.raises(FuseError, match=r'depth moves by .* on average'):
        fuse_resize(make(), (48, 64), tmp_path / 'new.onnx')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['net.onnx', 'net.yaml']


def test_changed_file_is_refused(make, tmp_path):
    card = make()
    path = card.precisions['fp32'].path
    path.write_bytes(path.read_bytes() + b'\0')
    with pytest.raises(ValueError, match='the file or the card was changed'):
        fuse_resize(card, (48, 64), tmp_path / 'new.onnx')


# --- the verb


def test_the_verb_writes_verifies_and_does_not_overwrite(
    make, tmp_path, monkeypatch, capsys
):
    make(kind='canonical_depth')
    monkeypatch.chdir(tmp_path)
    assert main(['models', 'fuse-resize', 'net.yaml', '--size', '64x48', '--json']) == 0
    told = json.loads(capsys.readouterr().out)
    assert told['card'] == str(tmp_path / 'net-64x48.yaml')
    assert told['files']['fp32']['mean_rel'] < 1e-3
    assert main(['models', 'verify', 'net-64x48.yaml']) == 0
    assert main(['models', 'lint', 'net-64x48.yaml']) == 0
    capsys.readouterr()
    again = ['models', 'fuse-resize', 'net.yaml', '--size', '64x48']
    assert main(again) == 1
    assert 'net-64x48.onnx is there already; --force' in capsys.readouterr().err
    assert main([*again, '--upsample', '--force']) == 0
    assert ModelCard.load('net-64x48.yaml').provenance['command'] == (
        'depth-node models fuse-resize net --size 64x48 --upsample')
    assert 'for pictures of 64x48' in capsys.readouterr().out
    assert main([*again[:-1], '40x24', '--out', 'x.onnx']) == 1
    assert 'for pictures of 40x24 nothing is resized' in capsys.readouterr().err
    assert main([*again, '--out', 'net.onnx', '--force']) == 2
    assert main([*again[:-1], '64']) == 2

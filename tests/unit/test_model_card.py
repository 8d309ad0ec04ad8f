"""Cards: round trip, search, and every lie named."""

import copy

from depth_node.model_card import CardError, ModelCard, check_input, file_sha256, find_card
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import yaml

GOOD = {
    'card_version': 1, 'name': 'tiny', 'licence': 'Apache-2.0',
    'files': {'fp32': {'file': 'tiny.onnx', 'sha256': '0' * 64}},
    'input': {'name': 'image', 'layout': 'uint8_nhwc', 'colour': 'rgb', 'resize': 'stretch',
              'size_hw': [96, 128]},
    'output': {'name': 'depth', 'kind': 'canonical_depth', 'unit': 'm', 'range_m': [0.2, 10.0],
               'canonical_focal_px': 128.0, 'assumed_hfov_deg': 60.0},
    'check': {'seed': 3, 'size_hw': [96, 128], 'mean': 2.0, 'std': 0.5,
              'percentiles': {5: 1.0, 95: 3.0}, 'tolerance': {'fp32': 0.001, 'int8': 0.1}},
    'provenance': {'command': 'depth-node train'}, 'metrics': {'rendered': {'abs_rel': 0.2}},
}


def write(folder, raw=None, onnx=b'not really onnx'):
    raw = copy.deepcopy(GOOD if raw is None else raw)
    (folder / 'tiny.onnx').write_bytes(onnx)
    digest = file_sha256(folder / 'tiny.onnx')
    text = yaml.safe_dump(raw).replace('0' * 64, digest)
    path = folder / 'tiny.yaml'
    path.write_text(text)
    return path


def test_round_trip(tmp_path):
    card = ModelCard.load(write(tmp_path))
    again = ModelCard.load(card.save(tmp_path / 'copy.yaml'))
    assert again.to_dict() == card.to_dict()
    assert card.verify_file('fp32') == tmp_path / 'tiny.onnx'
    assert card.check.statistics() == {'mean': 2.0, 'std': 0.5, 'p5': 1.0, 'p95': 3.0}


def changed(*path_and_value):
    *path, value = path_and_value
    raw = copy.deepcopy(GOOD)
    place = raw
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return raw


@pytest.mark.parametrize('change', [
    ('card_version', 2), ('card_version', None), ('name', ''), ('name', 7), ('licence', None),
    ('files', {}), ('files', 'fp32', 'sha256', 'abc'), ('files', 'fp32', 'file', None),
    ('files', 'fp13', {'file': 'a', 'sha256': '1' * 64}), ('files', ['fp32']),
    ('input', 'layout', 'nchw'), ('input', 'colour', 'rbg'), ('input', 'resize', 'crop'),
    ('input', 'resize', 'keep_aspect'), ('input', 'size_hw', [96]), ('input', 'size_hw', [0, 9]),
    ('input', 'size_hw', ['a', 'b']), ('input', 'size_hw', None), ('input', 'multiple_of', 32),
    ('input', 'layout', 'float32_nchw'), ('output', 'kind', 'disparity'),
    ('output', 'unit', 'mm'), ('output', 'range_m', [10, 0.2]), ('output', 'range_m', None),
    ('output', 'canonical_focal_px', None), ('output', 'canonical_focal_px', -3.0),
    ('output', 'kind', 'depth'), ('output', 'assumed_hfov_deg', 300.0),
    ('check', 'mean', float('nan')), ('check', 'tolerance', {'int8': 0.1}),
    ('check', 'tolerance', {'fp32': 2.0}), ('check', 'percentiles', {'p5': 1.0}),
    ('check', 'size_hw', [32, 32]), ('provenance', [1]),
])
def test_a_card_that_lies_is_refused_by_the_key(tmp_path, change):
    with pytest.raises(CardError, match=r'tiny\.yaml') as caught:
        ModelCard.load(write(tmp_path, changed(*change)))
    assert change[0] in str(caught.value)


@pytest.mark.parametrize('text', ['', '[]', 'a: [', '\x00', 'null', '!!python/object:os.system'])
def test_garbage_is_refused(tmp_path, text):
    path = tmp_path / 'bad.yaml'
    path.write_text(text)
    with pytest.raises(CardError, match=r'bad\.yaml'):
        ModelCard.load(path)


tree = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=6)


@settings(max_examples=200, deadline=None)
@given(section=st.sampled_from(sorted(GOOD)), key=st.integers(0, 9), value=tree)
def test_hostile_values_raise_card_errors_only(tmp_path_factory, section, key, value):
    raw = copy.deepcopy(GOOD)
    if isinstance(raw[section], dict):
        keys = sorted(raw[section], key=str)
        raw[section][keys[key % len(keys)]] = value
    else:
        raw[section] = value
    try:
        ModelCard.from_dict(raw, tmp_path_factory.getbasetemp() / 'x.yaml')
    except CardError:
        pass


def test_changed_file_is_named(tmp_path):
    card = ModelCard.load(write(tmp_path))
    (tmp_path / 'tiny.onnx').write_bytes(b'other')
    with pytest.raises(CardError, match='SHA-256'):
        card.verify_file('fp32')
    (tmp_path / 'tiny.onnx').unlink()
    with pytest.raises(CardError, match='cannot be read'):
        card.verify_file('fp32')
    with pytest.raises(CardError, match='no int8 file; it has: fp32'):
        card.verify_file('int8')


def test_search_finds_names_paths_and_onnx(tmp_path, monkeypatch):
    path = write(tmp_path)
    monkeypatch.setenv('DEPTH_NODE_MODELS', str(tmp_path))
    assert find_card('tiny') == path
    assert find_card(tmp_path / 'tiny.onnx') == path
    with pytest.raises(CardError, match=r"'tinny'; found: .*tiny"):
        find_card('tinny')
    (tmp_path / 'bare.onnx').write_bytes(b'')
    with pytest.raises(CardError, match='models add'):
        find_card(tmp_path / 'bare.onnx')
    with pytest.raises(CardError, match='no such'):
        find_card(tmp_path / 'gone.yaml')
    with pytest.raises(CardError, match='no model named'):
        find_card('')


def test_save_leaves_nothing_behind_when_it_fails(tmp_path, monkeypatch):
    card = ModelCard.load(write(tmp_path))
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr('os.replace', lambda *_: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'):
        card.save()
    assert sorted(tmp_path.iterdir()) == before


def test_check_input_is_seeded_and_lively():
    first, again, other = (check_input(seed, (48, 65)) for seed in (1, 1, 2))
    assert first.shape == (1, 48, 65, 3)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
    assert first.std() > 15

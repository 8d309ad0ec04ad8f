"""A card inside the ONNX file: the same meaning without the YAML, and no second opinion."""

from __future__ import annotations

from dataclasses import replace
import json
import subprocess
import sys

from depth_node.model_card import (
    METADATA_KEY,
    CardError,
    ModelCard,
    file_sha256,
    read_onnx_metadata,
)
from hypothesis import HealthCheck, given, settings, strategies
import pytest

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('torch')

from depth_node.export.card import embed  # noqa: E402


@pytest.fixture
def embedded(tiny_card):
    """An FP32 file with the card inside, and the card beside it."""
    card = tiny_card()
    spec = embed(card, 'fp32', card.precisions['fp32'].path)
    card = replace(card, precisions={'fp32': spec})
    card.save()
    return card


def test_metadata_is_read_as_onnx_reads_it(embedded):
    path = embedded.precisions['fp32'].path
    model = onnx.load(path)
    model.metadata_props.add(key='author', value='a test, ünïcode')
    model.metadata_props.add(key='empty', value='')
    onnx.save(model, path)
    expected = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert set(expected) == {METADATA_KEY, 'author', 'empty'}
    assert read_onnx_metadata(path) == expected


def test_bare_file_is_its_own_card(embedded, tmp_path, monkeypatch):
    from depth_node.backends import open_backend, self_check

    embedded.path.unlink()
    path = embedded.precisions['fp32'].path
    card = ModelCard.load(path)
    assert card == ModelCard.from_onnx_metadata(path)
    assert card.path == path
    for part in ('name', 'licence', 'input', 'output', 'check', 'provenance'):
        assert getattr(card, part) == getattr(embedded, part), part
    assert card.precisions['fp32'].sha256 == file_sha256(path)
    with open_backend(card, 'onnxruntime', 'fp32', threads=1) as backend:
        assert self_check(backend).ok
    written = card.save()  # beside it, not over it
    assert written == path.with_suffix('.yaml')
    assert ModelCard.load(path).path == written
    assert ModelCard.load(path).to_dict() == card.to_dict()


def test_reading_needs_no_onnx_package(embedded):
    code = (
        'import sys; sys.modules["onnx"] = None\n'
        'from depth_node.model_card import ModelCard\n'
        f'print(ModelCard.from_onnx_metadata({str(embedded.precisions["fp32"].path)!r}).name)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'tiny', done.stderr


def test_embedding_again_replaces_and_changes_no_weights(embedded):
    path = embedded.precisions['fp32'].path
    before = onnx.load(path)
    embed(replace(embedded, licence='MIT'), 'fp32', path)
    after = onnx.load(path)
    assert [entry.key for entry in after.metadata_props] == [METADATA_KEY]
    assert json.loads(after.metadata_props[0].value)['licence'] == 'MIT'
    assert before.graph == after.graph
    assert not list(path.parent.glob('.*'))


@pytest.mark.parametrize(
    ('section', 'changes', 'words'),
    [
        ('output', {'kind': 'inv_depth'}, r"output\.kind 'depth', the card .* 'inv_depth'"),
        ('output', {'range_m': [0.2, 4.0]}, r'output\.range_m'),
        ('input', {'colour': 'bgr'}, r"input\.colour 'rgb'"),
        ('check', {'mean': 9.0}, r'check\.mean'),
    ],
)
def test_two_cards_that_disagree_are_refused_with_the_key(embedded, section, changes, words):
    raw = embedded.to_dict()
    raw[section].update(changes)
    lying = ModelCard.from_dict(raw, embedded.path)
    lying.save()
    with pytest.raises(CardError, match=words):
        ModelCard.load(embedded.precisions['fp32'].path)
    with pytest.raises(CardError, match=words):  # by its name too, before it is run
        ModelCard.load(embedded.path).verify_file('fp32')


def test_what_is_learned_later_is_no_disagreement(embedded):
    raw = embedded.to_dict()
    raw['check']['tolerance']['int8'] = 0.09
    raw['metrics'] = {'fp32': {'frames': 3}}
    raw['provenance'] = {'more': 'known'}
    ModelCard.from_dict(raw, embedded.path).save()
    card = ModelCard.load(embedded.precisions['fp32'].path)
    assert card.verify_file('fp32').is_file()
    assert card.check.tolerance['int8'] == 0.09


def test_other_precision_alone_says_what_it_is(embedded, tmp_path):
    half = tmp_path / 'alone.fp16.onnx'
    half.write_bytes(embedded.precisions['fp32'].path.read_bytes())
    embed(embedded, 'fp16', half)
    card = ModelCard.load(half)
    assert list(card.precisions) == ['fp16']
    assert card.verify_file('fp16') == half
    with pytest.raises(CardError, match='needs the FP32 file; this one has: fp16'):
        card.save()
    with pytest.raises(CardError, match='has no fp32 file'):
        card.verify_file('fp32')


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('{', 'not JSON'),
        ('[]', 'precision None'),
        ('{"precision": "fp7"}', "precision 'fp7'"),
        ('{"precision": "fp32"}', 'card_version is missing'),
    ],
)
def test_broken_cards_inside_are_refused(embedded, text, words):
    path = embedded.precisions['fp32'].path
    embedded.path.unlink()
    model = onnx.load(path)
    model.metadata_props[0].value = text
    onnx.save(model, path)
    with pytest.raises(CardError, match=words):
        ModelCard.load(path)


def test_file_without_a_card_tells_how_to_get_one(tiny_card):
    card = tiny_card()
    card.path.unlink()
    path = card.precisions['fp32'].path
    with pytest.raises(CardError, match='none inside; write one with: depth-node models add'):
        ModelCard.load(path)
    with pytest.raises(CardError, match='no card inside'):
        ModelCard.from_onnx_metadata(path)
    with pytest.raises(CardError, match='cannot be read'):
        ModelCard.from_onnx_metadata(path.with_name('absent.onnx'))


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(cut=strategies.integers(0, 2000), noise=strategies.binary(max_size=40))
def test_truncated_and_hostile_files_give_nothing_but_a_reason(embedded, tmp_path, cut, noise):
    whole = embedded.precisions['fp32'].path.read_bytes()
    path = tmp_path / 'hostile.onnx'
    path.write_bytes(whole[: max(0, len(whole) - cut)] + noise)
    try:
        read_onnx_metadata(path)
    except CardError as error:
        assert 'hostile.onnx' in str(error)  # noqa: PT017


def test_a_field_that_claims_gigabytes_is_not_read(tmp_path):
    path = tmp_path / 'huge.onnx'
    path.write_bytes(bytes([14 << 3 | 2, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]))
    with pytest.raises(CardError, match='ends beyond its message'):
        read_onnx_metadata(path)
    with path.open('wb') as stream:
        stream.write(bytes([14 << 3 | 2, 0x80, 0x80, 0x80, 0x02]))  # 4 MiB
        stream.truncate(5 + (4 << 20))
    with pytest.raises(CardError, match='has 4194304 bytes'):
        read_onnx_metadata(path)

"""`depth-node models` as a process."""

from __future__ import annotations

import json

from depth_node.model_card import ModelCard
import pytest
import yaml

pytest.importorskip('onnxruntime')


def test_list_show_and_json(cli, tiny_card):
    tiny_card('small_one', int8_gain=0.0201)
    result = cli('models')
    assert result.returncode == 0
    assert 'small_one' in result.stdout
    assert '40x24' in result.stdout
    document = json.loads(cli('models', 'list', '--json').stdout)
    row = next(row for row in document['models'] if row['name'] == 'small_one')
    assert row['precisions'] == ['fp32', 'int8']
    shown = yaml.safe_load(cli('models', 'show', 'small_one').stdout)
    assert shown == ModelCard.load(row['card']).to_dict()
    assert json.loads(cli('models', 'show', 'small_one', '--json').stdout)['name'] == 'small_one'


def test_a_broken_card_is_listed_as_such(cli_here, tiny_card, tmp_path):
    tiny_card()
    (tmp_path / 'broken.yaml').write_text('card_version: 1\n')
    result = cli_here('models')
    assert result.returncode == 1
    assert 'not usable' in result.stdout
    assert 'tiny' in result.stdout


def test_verify_runs_every_backend(cli, tiny_card):
    tiny_card(int8_gain=0.0201)
    result = cli('models', 'verify', 'tiny', '--json')
    assert result.returncode == 0, result.stderr
    (model,) = json.loads(result.stdout)['models']
    what = [line['what'] for line in model['lines']]
    assert 'fp32 file' in what
    assert 'onnxruntime fp32' in what
    assert 'onnxruntime int8' in what


def test_verify_names_what_is_wrong(cli_here, tiny_card, tmp_path):
    card = tiny_card()
    tiny_card('liar', changes={'check': {'mean': 9.0}})
    with card.precisions['fp32'].path.open('ab') as stream:
        stream.write(b'x')
    result = cli_here('models', 'verify', 'tiny', 'liar', 'absent')
    assert result.returncode == 1
    assert 'SHA-256 is' in result.stdout
    assert '% off' in result.stdout
    assert "no model card named 'absent'" in result.stdout


def bare(tiny_card, **options):
    """An ONNX file without its card."""
    card = tiny_card('net', **options)
    card.path.unlink()
    return card


def test_add_writes_a_card_that_verifies(cli, tiny_card, tmp_path):
    original = bare(tiny_card, int8_gain=0.0201, outputs={'depth': 'depth',
                                                          'confidence': 'confidence'})
    result = cli('models', 'add', 'net.onnx', '--kind', 'depth', '--range', 0.2, 40, '--licence',
                 'MIT', '--int8', 'net.int8.onnx', '--confidence', 'confidence')
    assert result.returncode == 0, result.stderr
    card = ModelCard.load(tmp_path / 'net.yaml')
    assert card.input == original.input
    assert card.output == original.output
    assert card.precisions == original.precisions
    assert card.licence == 'MIT'
    assert card.check is not None
    assert cli('models', 'verify', 'net').returncode == 0
    again = cli('models', 'add', 'net.onnx', '--kind', 'depth', '--range', 0.2, 40, '--licence',
                'MIT')
    assert again.returncode == 1
    assert '--force' in again.stderr


def test_add_a_dynamic_float_network(cli, tiny_card, tmp_path):
    bare(tiny_card, layout='float32_nchw', dynamic=True, check=False)
    result = cli('models', 'add', 'net.onnx', '--kind', 'rel_inv_depth', '--licence', 'MIT',
                 '--mean', 123.675, 116.28, 103.53, '--std', 58.395, 57.12, 57.375,
                 '--multiple-of', 8, '--min', 16, 32, '--max', 160, 320, '--json')
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)['card'] == str(tmp_path / 'net.yaml')
    card = ModelCard.load(tmp_path / 'net.yaml')
    assert card.input.mean == (123.675, 116.28, 103.53)
    assert (card.input.multiple_of, card.input.min_hw) == (8, (16, 32))
    assert card.output.unit == 'none'
    assert card.input.resize == 'keep_aspect'


@pytest.mark.parametrize(('options', 'arguments', 'status', 'text'), [
    ({}, ['absent.onnx', '--kind', 'depth', '--licence', 'MIT'], 1, 'there is no such file'),
    ({}, ['net.onnx', '--kind', 'depth', '--licence', 'MIT'], 2, '--range NEAR FAR is needed'),
    ({}, ['net.onnx', '--kind', 'disparity', '--licence', 'MIT'], 1, 'disparity'),
    ({}, ['net.onnx', '--kind', 'depth', '--licence', 'MIT', '--range', '1', '9', '--mean', '1',
          '2', '3'], 2, 'the graph normalises itself'),
    ({'layout': 'float32_nchw'}, ['net.onnx', '--kind', 'rel_depth', '--licence', 'MIT'], 2,
     '--mean and --std are needed'),
    ({'dynamic': True}, ['net.onnx', '--kind', 'rel_depth', '--licence', 'MIT'], 2,
     '--multiple-of N'),
    ({'outputs': {'a': 'depth', 'b': 'depth'}},
     ['net.onnx', '--kind', 'rel_depth', '--licence', 'MIT'], 2, 'outputs a, b'),
    ({'poison': 1.0}, ['net.onnx', '--kind', 'rel_depth', '--licence', 'MIT'], 1, 'not finite'),
    ({}, ['junk.onnx', '--kind', 'rel_depth', '--licence', 'MIT'], 1, 'cannot be read'),
])
def test_add_refuses_and_writes_nothing(
        cli_here, tiny_card, tmp_path, options, arguments, status, text):
    bare(tiny_card, **options)
    (tmp_path / 'junk.onnx').write_bytes(b'junk')
    result = cli_here('models', 'add', *arguments)
    assert result.returncode == status, result.stderr
    assert text in result.stderr
    assert not list(tmp_path.glob('*.yaml'))

"""`depth-node build-engine` and `depth-node engines`, over the real builder process and cache."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
import sys
import time

from depth_node.backends.engine_cache import EngineCache, engines_folder
from depth_node.cli import build_engine, main
from depth_node.model_card import FileSpec, file_sha256
import pytest

FAKE = Path(__file__).resolve().parents[2] / 'data' / 'fake_tensorrt'


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Return a function that runs a verb here; no cards and caches but those in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('DEPTH_NODE_MODELS', str(tmp_path))
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path / 'nothing'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))

    def call(*arguments):
        capsys.readouterr()
        status = main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        assert 'Traceback' not in err
        return status, out, err
    return call


@pytest.fixture
def machine(fake, monkeypatch):
    """Let this be a robot with a GPU and a TensorRT 8, both stand-ins."""
    monkeypatch.syspath_prepend(str(FAKE))
    monkeypatch.setenv('FAKE_CUDART', fake.path)

    def tensorrt(**settings):
        monkeypatch.setenv('FAKE_TENSORRT', json.dumps(settings))
        sys.modules.pop('tensorrt', None)
        return importlib.import_module('tensorrt')

    tensorrt()
    yield tensorrt
    sys.modules.pop('tensorrt', None)


# --- build-engine


def test_builds_checks_and_keeps_what_the_node_will_find(cli, machine, tiny_card, tmp_path):
    tiny_card()
    status, out, err = cli('build-engine', 'tiny', '--json')
    assert status == 0
    assert 'building the fp16 engine of tiny for Fake Orin' in err  # no terminal, no bar: lines
    first = json.loads(out)
    assert (first['built'], first['precision'], first['module']) == (True, 'fp16', 'tensorrt')
    assert (first['gpu'], first['sm']) == ('Fake Orin', 87)
    assert '% off' in first['self_check']
    [entry] = EngineCache(engines_folder(tmp_path / 'home' / 'depth_node')).verify()
    assert (str(entry.path), entry.nbytes, entry.problem) == (first['engine'], first['bytes'], '')
    status, out, err = cli('build-engine', 'tiny')
    assert (status, err) == (0, '')
    assert 'self-check: ' in out
    assert 'was there; found in' in out


def test_another_cache_and_precision(cli, machine, tiny_card, tmp_path):
    tiny_card()
    for precision in ('fp32', 'mixed'):
        status, out, _ = cli('build-engine', 'tiny', '--precision', precision, '--json',
                             '--cache-dir', tmp_path / 'c')
        assert status == 0
        assert json.loads(out)['precision'] == precision
    entries = EngineCache(tmp_path / 'c' / 'engines').entries()
    assert {entry.key.precision for entry in entries} == {'fp32', 'mixed'}


def test_without_a_gpu_it_says_what_is_missing(cli, fake, tiny_card):
    tiny_card()
    fake.device(count=0, error=35)
    status, out, err = cli('build-engine', 'tiny')
    assert (status, out) == (1, '')
    assert err.startswith('depth-node build-engine: no backend runs model')
    assert 'driver' in err


@pytest.mark.parametrize('option', [
    ['--target-sm', '86'], ['--memory-mib', '10'], ['--optimization-level', '3'],
    ['--size', '8', '8'], ['--module', 'tensorrt']])
def test_options_of_a_file_need_one(cli, tiny_card, option):
    tiny_card()
    status, _, err = cli('build-engine', 'tiny', *option)
    assert status == 2
    assert f'{option[0]} goes with -o' in err


def test_into_a_file_by_the_stand_in(cli, machine, tiny_card, tmp_path):
    tiny_card(dynamic=True)
    status, out, err = cli('build-engine', 'tiny', '-o', 'x.engine', '--size', 24, 40, '--json',
                           '--memory-mib', 64)
    assert status == 0, err
    result = json.loads(out)
    assert (result['precision'], result['built']) == ('fp16', True)
    assert Path('x.engine').stat().st_size == result['bytes'] > 0
    assert not (tmp_path / 'home').exists()
    status, _, err = cli('build-engine', 'tiny', '-o', 'x.engine', '--cache-dir', 'c')
    assert status == 2
    assert '--cache-dir goes without -o' in err


def test_into_a_file_without_a_gpu_by_rtx(cli, tiny_card):
    pytest.importorskip('tensorrt_rtx', reason="not installed: pip install '.[rtx]' (95 MB)")
    tiny_card()
    status, out, err = cli('build-engine', 'tiny', '--target-sm', 86, '-o', 'x.engine')
    assert status == 0, err
    assert 'x.engine: ' in out
    assert 'fp32 by tensorrt_rtx' in out
    for arguments, message in (
            (['--target-sm', 87], 'SM87 is not known; known are '),
            (['--target-sm', 86, '--precision', 'fp16'], 'has no fp16 file'),
            (['--module', 'tensorrt_rtx', '--target-sm', 86, '--size', 8, 8, '--precision',
              'mixed'], 'mixed is for TensorRT 8')):
        status, _, err = cli('build-engine', 'tiny', '-o', 'y.engine', *arguments)
        assert status == 1
        assert message in err
    assert not Path('y.engine').exists()


def test_missing_rtx_names_the_extra(cli, tiny_card, monkeypatch):
    tiny_card()
    monkeypatch.setitem(sys.modules, 'tensorrt_rtx', None)
    status, _, err = cli('build-engine', 'tiny', '--target-sm', 86, '-o', 'x.engine')
    assert status == 1
    assert "pip install '.[rtx]' in the clone" in err


def test_bar_shows_the_phase_and_the_share(monkeypatch, capsys):
    pytest.importorskip('tqdm')
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    with build_engine._bar() as progress:
        progress('Computing profile costs', 0.42)
        time.sleep(0.12)  # longer than tqdm waits between two drawings
        progress('Building engine', 0.5)
    text = capsys.readouterr().err
    assert ' 42 %|' in text
    assert 'Computing profile costs' in text
    assert ' 50 %|' in text


def test_no_bar_where_nobody_looks(capsys):
    with build_engine._bar() as progress:
        progress('Building engine', 0.5)
    assert capsys.readouterr().err == ''


# --- engines


@pytest.fixture
def engines(cli, machine, tiny_card, tmp_path):
    """Two engines in the user's cache."""
    tiny_card()
    for precision in ('fp32', 'fp16'):
        assert cli('build-engine', 'tiny', '--precision', precision)[0] == 0
    return EngineCache(engines_folder(tmp_path / 'home' / 'depth_node'))


def test_list(cli, engines):
    status, out, _ = cli('engines')
    assert status == 0
    assert 'Fake Orin (SM 8.7)' in out
    assert 'tensorrt 8.6.1' in out
    assert cli('engines', 'list')[1] == out
    status, out, _ = cli('engines', '--json')
    document = json.loads(out)
    assert document['folder'] == str(engines.folder)
    assert [row['key']['precision'] for row in document['engines']] == ['fp16', 'fp32']
    assert {row['problem'] for row in document['engines']} == {None}
    assert document['engines'][0]['info']['model'] == 'tiny'


def test_nothing_is_no_error(cli, tmp_path):
    status, out, _ = cli('engines')
    assert (status, 'no engines' in out) == (0, True)
    status, out, _ = cli('engines', 'verify', '--cache-dir', tmp_path / 'c', '--json')
    assert (status, json.loads(out)) == (
        0, {'folder': str(tmp_path / 'c' / 'engines'), 'engines': []})


def test_verify_finds_a_flipped_byte_that_the_list_does_not(cli, engines):
    path = engines.entries()[0].path
    plan = bytearray(path.read_bytes())
    plan[len(plan) // 2] ^= 255
    path.write_bytes(plan)
    assert cli('engines')[0] == 0
    status, out, _ = cli('engines', 'verify')
    assert status == 1
    assert 'it was changed after it was built' in out
    status, out, _ = cli('engines', 'verify', '--json')
    assert status == 1
    assert len([row for row in json.loads(out)['engines'] if row['problem']]) == 1
    status, out, _ = cli('engines', 'prune')
    assert status == 0
    assert f'removed {path}' in out
    assert len(engines.entries()) == 1
    assert cli('engines', 'verify')[0] == 0


def test_prune_by_age_size_and_all(cli, engines):
    newest, oldest = (entry.path for entry in engines.entries())
    long_ago = time.time() - 86400 * 100
    os.utime(oldest, (long_ago, long_ago))
    assert 'removed ' not in cli('engines', 'prune', '--unused-days', 101, '--limit-mb', 10)[1]
    status, out, _ = cli('engines', 'prune', '--unused-days', '90.5', '--json')
    assert status == 0
    assert json.loads(out)['removed'] == [str(oldest)]
    assert json.loads(out)['freed_bytes'] > 0
    assert cli('engines', 'prune', '--all')[0] == 0
    assert not newest.exists()
    assert engines.entries() == []


@pytest.mark.parametrize('arguments', [
    ['prune', '--unused-days', '0'], ['prune', '--limit-mb', '-1'], ['remove'],
    ['list', '--all']])
def test_wrong_usage(cli, arguments):
    assert cli('engines', *arguments)[0] == 2


def test_changed_network_gets_a_new_engine(cli, engines, tiny_card):
    card = tiny_card(gain=0.03)
    spec = card.precisions['fp32']
    assert spec == FileSpec(spec.path, file_sha256(spec.path))
    status, out, _ = cli('build-engine', 'tiny', '--precision', 'fp32', '--json')
    assert status == 0
    assert json.loads(out)['built'] is True
    assert len(engines.entries()) == 3

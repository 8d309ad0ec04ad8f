import argparse
import os
import signal
import subprocess
import sys
import time

from depth_node.cli import synthesize
from depth_node.synthesis import recipe
import pytest


def parse(*words):
    parser = argparse.ArgumentParser()
    synthesize.add_arguments(parser)
    return parser.parse_args(words)


def test_nothing_imports_blender_before_it_renders():
    blocked = ['bpy', 'mathutils', 'OpenEXR', 'torch', 'rclpy']
    modules = ['blender', 'scenes', 'clip', 'worker', 'generate', 'clip_process', 'attribution',
               'lighting', 'shell', 'things', 'spaces', 'shapes', 'recipe']
    code = f'import sys; sys.modules.update(dict.fromkeys({blocked})); ' + '; '.join(
        f'import depth_node.synthesis.{name}' for name in modules)
    subprocess.run([sys.executable, '-c', code], check=True)


def test_verb_itself_imports_nothing_heavy():
    code = ('import sys, depth_node.cli.synthesize; '
            'sys.exit(" ".join({"numpy", "cv2", "tqdm"} & set(sys.modules)) or 0)')
    subprocess.run([sys.executable, '-c', code], check=True)


def test_size_is_width_by_height():
    assert parse('--out', 'x', '--size', '320x240').size == (320, 240)


def test_channels_are_a_list_without_repeats():
    assert parse('--out', 'x', '--channels', 'labels,normals,labels').channels == (
        'labels', 'normals')


def test_splits_are_all_unless_some_are_named():
    assert parse('--out', 'x').splits == recipe.SPLITS == ('train', 'val', 'test')
    assert parse('--out', 'x', '--splits', 'test,train').splits == ('test', 'train')


@pytest.mark.parametrize(
    'words', [('--size', '320'), ('--size', '0x10'), ('--workers', '0'), ('--tables', '1.5'),
              ('--preset', 'huge'), ('--channels', 'flow'), ('--splits', 'tests'),
              ('--sequence', '0')],
)
def test_impossible_values_are_usage_errors(words, capsys):
    with pytest.raises(SystemExit) as error:
        parse('--out', 'x', *words)
    assert error.value.code == 2
    assert words[1] in capsys.readouterr().err


def test_missing_catalogue_ends_with_what_to_install(tmp_path, capsys):
    assert synthesize.run(parse('--out', str(tmp_path), '--catalogue', str(tmp_path))) == 1
    assert 'apt install sweethome3d-furniture' in capsys.readouterr().err


@pytest.mark.parametrize(('signum', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143),
                                                (signal.SIGHUP, 143)])
def test_whatever_ends_the_verb_ends_its_workers(tmp_path, signum, status):
    blender, note, out = tmp_path / 'python', tmp_path / 'worker.pid', tmp_path / 'frames'
    blender.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit\necho $$ >{note}.new\n'
                       f'mv {note}.new {note}\nexec sleep 60\n')
    blender.chmod(0o755)
    # started with &, these tests would hand down an ignored SIGINT
    code = ('import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); '
            'from depth_node.synthesis import catalogue; '
            'catalogue.load_catalogue = lambda _: []; from depth_node.cli import main; '
            'sys.exit(main(sys.argv[1:]))')
    words = ['synthesize', '--out', out, '--workers', '1', '--python', blender]
    with subprocess.Popen([sys.executable, '-c', code, *words], stderr=subprocess.PIPE,
                          text=True) as verb:
        until = time.monotonic() + 60
        while not note.exists() and time.monotonic() < until:
            time.sleep(0.02)
        worker = int(note.read_text())
        os.kill(worker, 0)
        verb.send_signal(signum)
        said = verb.communicate(timeout=30)[1]
    assert verb.returncode == status
    assert 'run the same command to continue' in said
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert not (out / '.partial').exists()

"""The engine cache under attack: what is not exactly what was asked for is never handed out."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace
import json
import os
from pathlib import Path
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

from depth_node.backends import engine_cache
from depth_node.backends.engine_cache import (
    CacheError,
    EngineCache,
    EngineKey,
    default_cache_dir,
    engines_folder,
)
from depth_node.backends.tensorrt_build import BuildRequest, Profile
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

KEY = EngineKey('a' * 64, 'tensorrt', '10.3.0', 'Orin', 87, 'fp16',
                Profile((112, 140), (308, 420), (518, 700)), 1024)
OTHER = replace(KEY, onnx_sha256='b' * 64)
PLAN = bytes(range(256)) * 40
CHANGES = {
    'onnx_sha256': 'c' * 64, 'module': 'tensorrt_rtx', 'trt_version': '10.13.0',
    'gpu_name': 'NVIDIA RTX A2000', 'sm': 86, 'precision': 'fp32', 'profile': None,
    'memory_mib': 512, 'optimization_level': 5, 'builder': 999}


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / 'engines')


def names(cache):
    """List the files but locks."""
    return sorted(path.name for path in cache.folder.iterdir() if path.suffix != '.lock')


def files(cache, key=KEY):
    return cache.folder / f'{key.digest()}.engine', cache.folder / f'{key.digest()}.engine.json'


def refused(cache, message, key=KEY):
    found = cache.lookup(key)
    assert found.plan is None
    assert message in found.reason, found.reason


def stored(cache, key=KEY, plan=PLAN):
    return cache.store(key, plan, {'model': 'small'})


# --- what is stored is found, and nothing else


def test_what_was_stored_is_found(cache):
    refused(cache, 'no engine for this in')
    path = stored(cache)
    assert cache.lookup(KEY) == (PLAN, '', '')
    assert EngineCache(cache.folder).lookup(KEY).plan == PLAN  # by another process too
    assert names(cache) == [path.name, f'{path.name}.json']
    [entry] = cache.verify()
    assert (entry.key, entry.nbytes, entry.problem) == (KEY, len(PLAN), '')
    assert entry.info['model'] == 'small'


@pytest.mark.parametrize(('name', 'value'), CHANGES.items())
def test_every_part_of_the_key_counts(cache, name, value):
    stored(cache)
    other = replace(KEY, **{name: value})
    assert other.digest() != KEY.digest()
    assert cache.lookup(other).plan is None


def test_the_table_of_changes_is_complete():
    assert set(CHANGES) == set(EngineKey.__dataclass_fields__)


def test_engine_of_another_version_and_gpu_is_named(cache):
    stored(cache)
    refused(cache, 'was built for TensorRT 10.3.0, here TensorRT 10.13.0; for Orin, here NVIDIA '
                   'RTX A2000; for sm_87, here sm_86',
            replace(KEY, trt_version='10.13.0', gpu_name='NVIDIA RTX A2000', sm=86))
    refused(cache, 'for sizes 112x140, 308x420, 518x700, here sizes the default',
            replace(KEY, profile=None))


def test_key_survives_its_sidecar():
    for key in (KEY, replace(KEY, profile=None, optimization_level=3)):
        raw = json.loads(json.dumps(asdict(key)))
        assert EngineKey.from_json(raw) == key


def test_key_of_a_request():
    request = BuildRequest(Path('x.onnx'), 'fp16', KEY.profile, 1024)
    assert EngineKey.of(request, 'a' * 64, module='tensorrt', trt_version='10.3.0',
                        gpu_name='Orin', sm=87) == KEY


def test_folder_is_for_its_owner_alone(cache):
    path = stored(cache)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in cache.folder.iterdir()} == {0o600}
    assert path.is_file()


def test_the_users_folder_is_the_nodes(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert default_cache_dir() == tmp_path / 'depth_node'
    assert engines_folder() == tmp_path / 'depth_node' / 'engines'
    assert engines_folder(Path('/x')) == Path('/x/engines')
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert default_cache_dir() == tmp_path / '.cache' / 'depth_node'


# --- attacks


@pytest.mark.parametrize('length', [0, 1, len(PLAN) - 1, len(PLAN) + 1])
def test_cut_or_grown_plan_is_refused(cache, length):
    path = stored(cache)
    path.write_bytes((PLAN + b'x')[:length])
    refused(cache, f'it has {length} bytes, its sidecar says {len(PLAN)}')
    assert 'bytes' in cache.entries()[0].problem


@pytest.mark.parametrize('place', [0, 5000, len(PLAN) - 1])
def test_one_flipped_bit_is_refused(cache, place):
    path = stored(cache)
    changed = bytearray(PLAN)
    changed[place] ^= 1
    path.write_bytes(changed)
    refused(cache, 'changed after it was built')
    assert cache.entries()[0].problem == ''  # the quick look does not read plans
    assert 'changed after it was built' in cache.verify()[0].problem


def test_swapped_sidecar_is_refused(cache):
    stored(cache)
    stored(cache, OTHER, PLAN[::-1])
    shutil.copy(files(cache, OTHER)[1], files(cache)[1])
    refused(cache, 'its sidecar is of another engine')
    # with its plan as well: right hash, wrong key
    shutil.copy(files(cache, OTHER)[0], files(cache)[0])
    refused(cache, 'its sidecar is of another engine')
    assert cache.lookup(OTHER).plan == PLAN[::-1]


def test_sidecar_with_the_right_name_and_another_key_is_refused(cache, monkeypatch):
    """Even if two keys had one digest."""
    monkeypatch.setattr(EngineKey, 'digest', lambda self: 'd' * 32)
    stored(cache)
    refused(cache, 'built for TensorRT 10.3.0, here TensorRT 10.13.0',
            replace(KEY, trt_version='10.13.0'))


@pytest.mark.parametrize(('change', 'message'), [
    ({'sidecar_version': 2}, 'another version'),
    ({'bytes': None}, 'lacks'), ({'bytes': True}, 'lacks'), ({'bytes': '10'}, 'lacks'),
    ({'sha256': 'f' * 64}, 'changed after'), ({'sha256': ''}, 'changed after'),
    ({'sha256': 3}, 'lacks'), ({'info': []}, 'lacks'), ({'key': None}, 'other fields'),
    ({'key': {}}, 'other fields'),
])
def test_forged_sidecar_is_refused(cache, change, message):
    stored(cache)
    sidecar = files(cache)[1]
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **change}))
    refused(cache, message)


@pytest.mark.parametrize(('name', 'value', 'message'), [
    ('sm', '87', 'other types'), ('sm', 87.0, 'other types'), ('precision', 'fp8', 'other types'),
    ('profile', [[1, 2], [3, 4]], 'three sizes'), ('profile', 'abc', 'three sizes'),
    ('profile', [[1, 2], [3, 4], [5, '6']], 'three sizes'), ('gpu_name', 'Thor', 'another engine'),
    ('optimization_level', 'x', 'other types'), ('builder', 0, 'another engine')])
def test_forged_key_is_refused(cache, name, value, message):
    stored(cache)
    sidecar = files(cache)[1]
    raw = json.loads(sidecar.read_text())
    raw['key'][name] = value
    sidecar.write_text(json.dumps(raw))
    refused(cache, message)


@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '\x00\xff', '[' * 60000, 'x' * 70000,
                                  '{"sidecar_version": 1}'])
def test_broken_sidecar_is_refused(cache, text):
    stored(cache)
    files(cache)[1].write_text(text)
    refused(cache, 'not used: ')
    assert cache.entries()[0].problem


def test_plan_without_sidecar_is_refused(cache):
    stored(cache)
    files(cache)[1].unlink()
    refused(cache, 'it has no sidecar')


def test_sidecar_without_plan_is_no_engine(cache):
    stored(cache)
    files(cache)[0].unlink()
    refused(cache, 'no engine for this')
    assert cache.entries() == []


@pytest.mark.parametrize('which', [0, 1])
@pytest.mark.parametrize('kind', ['link', 'folder', 'pipe'])
def test_links_folders_and_pipes_are_refused(cache, tmp_path, which, kind):
    stored(cache)
    path = files(cache)[which]
    elsewhere = tmp_path / 'elsewhere'
    path.rename(elsewhere)
    if kind == 'link':
        path.symlink_to(elsewhere)
    elif kind == 'folder':
        path.mkdir()
    else:
        os.mkfifo(path)  # who opens it without care waits for ever
    refused(cache, 'not used: ')
    assert cache.verify()[0].problem


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_no_change_of_the_files_hands_out_another_plan(data):
    with tempfile.TemporaryDirectory() as folder:
        cache = EngineCache(Path(folder))
        stored(cache)
        for path in files(cache):
            content = bytearray(path.read_bytes())
            for _ in range(data.draw(st.integers(0, 3))):
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(
                    st.integers(0, 255))
            path.write_bytes(content[:data.draw(st.just(len(content))
                                                | st.integers(0, len(content)))])
        found = cache.lookup(KEY)
        assert found.plan in (None, PLAN)
        assert (found.plan is None) == bool(found.reason)
        cache.verify()
        cache.prune()
        assert cache.lookup(KEY).plan == found.plan  # what was good stays


@settings(max_examples=50, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(['key', 'bytes', 'sha256', 'info', 'sidecar_version',
                                         *CHANGES]), inner), max_leaves=8))
def test_any_json_as_sidecar_is_refused(document):
    with tempfile.TemporaryDirectory() as folder:
        cache = EngineCache(Path(folder))
        stored(cache)
        files(cache)[1].write_text(json.dumps(document))
        assert cache.lookup(KEY).plan is None
        assert cache.verify()[0].problem


# --- building through the cache


def builder(plan=PLAN, calls=None):
    def build(path):
        if calls is not None:
            calls.append(path)
        path.write_bytes(plan)
    return build


def test_built_once_then_found(cache):
    calls = []
    found = cache.get_or_build(KEY, builder(calls=calls), {'model': 'small'})
    assert found.plan == PLAN
    assert 'no engine for this' in found.reason
    assert cache.get_or_build(KEY, builder(calls=calls)) == (PLAN, '', '')
    assert len(calls) == 1
    assert cache.entries()[0].info['build_s'] >= 0
    assert cache.get_or_build(KEY, builder(PLAN[::-1], calls), force=True).plan == PLAN[::-1]
    assert cache.lookup(KEY).plan == PLAN[::-1]


@pytest.mark.parametrize('attack', [
    lambda plan, sidecar: plan.write_bytes(PLAN[:-1]),
    lambda plan, sidecar: plan.write_bytes(b'\1' + PLAN[1:]),
    lambda plan, sidecar: sidecar.write_text('{}'),
    lambda plan, sidecar: sidecar.unlink(),
    lambda plan, sidecar: plan.unlink(),
])
def test_what_is_refused_is_rebuilt_and_says_why(cache, attack):
    stored(cache, plan=PLAN)
    attack(*files(cache))
    found = cache.get_or_build(KEY, builder(PLAN[::-1]))
    assert found.plan == PLAN[::-1]
    assert found.reason
    assert cache.lookup(KEY) == (PLAN[::-1], '', '')
    assert [entry.problem for entry in cache.verify()] == ['']


def test_failed_build_leaves_what_was_there(cache):
    stored(cache, OTHER)
    before = names(cache)

    def build(path):
        path.write_bytes(PLAN[:100])
        raise RuntimeError('TensorRT does not like it')

    with pytest.raises(RuntimeError, match='does not like it'):
        cache.get_or_build(KEY, build)
    assert names(cache) == before
    assert cache.lookup(KEY).plan is None


def run_python(code, *arguments):
    prelude = (f'import sys; sys.path[:0] = {sys.path!r}\n'
               'from pathlib import Path; import os, time\n'
               'from depth_node.backends.engine_cache import *\n'
               'from depth_node.backends.tensorrt_build import Profile\n'
               f'KEY = {KEY!r}\nPLAN = bytes(range(256)) * 40\n')
    return subprocess.Popen([sys.executable, '-c', prelude + textwrap.dedent(code),
                             *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def test_of_two_processes_one_builds(cache, tmp_path):
    code = """
        def build(path):
            with open(sys.argv[2], 'a') as log:
                log.write('built\\n')
            time.sleep(1)
            path.write_bytes(PLAN)
        waits = []
        found = EngineCache(Path(sys.argv[1])).get_or_build(KEY, build, on_wait=waits.append)
        assert found.plan == PLAN
        print(len(waits))
    """
    log = tmp_path / 'log'
    processes = [run_python(code, cache.folder, log) for _ in range(3)]
    waits = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert log.read_text() == 'built\n'
    assert '1' in waits  # at least one came while another built
    assert cache.lookup(KEY).plan == PLAN


def test_of_two_threads_one_builds(cache):
    calls, found = [], []

    def build(path):
        calls.append(path)
        time.sleep(0.2)
        path.write_bytes(PLAN)

    threads = [threading.Thread(target=lambda: found.append(cache.get_or_build(KEY, build)))
               for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert [each.plan for each in found] == [PLAN] * 3


def store_and_die(cache, step):
    """Store in a forked process that is killed before the n-th step; 0: count the steps."""
    child = os.fork()
    if child == 0:
        steps = 0

        def dying(function):
            def call(*args, **options):
                nonlocal steps
                steps += 1
                if steps == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **options)
            return call

        try:
            for name in ('fsync', 'replace', 'unlink', 'open'):
                setattr(os, name, dying(getattr(os, name)))
            EngineCache(cache.folder).store(KEY, PLAN[::-1])
        finally:
            os._exit(steps)
    status = os.waitpid(child, 0)[1]
    if step:
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
    return os.waitstatus_to_exitcode(status)


def test_kill_9_at_any_step_of_a_write_leaves_the_old_the_new_or_none(cache):
    steps = store_and_die(cache, 0)
    assert steps >= 8
    outcomes = set()
    for step in range(1, steps + 1):
        shutil.rmtree(cache.folder)
        stored(cache)
        store_and_die(cache, step)
        found = cache.lookup(KEY)
        assert found.plan in (None, PLAN, PLAN[::-1])
        assert 'changed after it was built' not in found.reason  # nobody changed it
        outcomes.add(found.plan)
        cache.prune()
        assert [name for name in names(cache) if not name.startswith(KEY.digest())] == []
        assert [entry.problem for entry in cache.verify()] in ([], [''])
        assert cache.get_or_build(KEY, builder(PLAN)).plan in (PLAN, PLAN[::-1])  # goes on
        assert cache.lookup(KEY).plan is not None
    assert outcomes == {None, PLAN, PLAN[::-1]}  # the deaths were spread over the whole write


def test_kill_9_during_a_build_frees_the_lock_and_is_cleaned_up(cache, tmp_path):
    process = run_python("""
        def build(path):
            path.write_bytes(PLAN[:500])
            Path(sys.argv[2]).touch()
            time.sleep(300)
        EngineCache(Path(sys.argv[1])).get_or_build(KEY, build)
    """, cache.folder, tmp_path / 'started')
    deadline = time.monotonic() + 30
    while not (tmp_path / 'started').exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    assert cache.prune(everything=True) == []  # it is at work: its files are left alone
    assert names(cache) == [f'{KEY.digest()}.new']
    process.kill()
    process.communicate()
    assert cache.lookup(KEY).plan is None
    assert [path.name for path in cache.prune()] == [f'{KEY.digest()}.new']
    assert list(cache.folder.iterdir()) == []
    assert cache.get_or_build(KEY, builder()).plan == PLAN


# --- room


@contextlib.contextmanager
def full_disk(nbytes):
    """Let writes beyond a size fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('nbytes', [0, 100, len(PLAN) - 1])
def test_full_disk_is_named_and_harms_nothing(cache, nbytes):
    stored(cache, OTHER)
    before = names(cache)
    with full_disk(nbytes), pytest.raises(CacheError, match='File too large; make room'):
        cache.store(KEY, PLAN)
    assert names(cache) == before
    assert cache.lookup(OTHER).plan == PLAN
    assert cache.lookup(KEY).plan is None


def test_disk_that_is_full_after_the_build_still_gives_the_plan(cache, monkeypatch):
    def build(path):
        path.write_bytes(PLAN)
        monkeypatch.setattr(engine_cache.os, 'fsync', fail)

    def fail(handle):
        raise OSError(28, 'No space left on device')

    found = cache.get_or_build(KEY, build)
    assert found.plan == PLAN
    assert 'no engine for this' in found.reason
    assert 'No space left on device; make room' in found.unkept
    monkeypatch.undo()
    assert cache.lookup(KEY).plan is None
    assert names(cache) == []


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which('mount') is None,
                    reason='a full tmpfs needs root')
def test_full_tmpfs(tmp_path):
    folder = tmp_path / 'small'
    folder.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(folder)],
                             capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f'no tmpfs here: {mounted.stderr.strip()}')
    try:
        cache = EngineCache(folder)
        stored(cache)
        with pytest.raises(CacheError, match='No space left on device; make room'):
            cache.store(OTHER, bytes(100_000))
        assert cache.lookup(KEY).plan == PLAN
        assert [name for name in names(cache) if not name.startswith(KEY.digest())] == []
    finally:
        subprocess.run(['umount', str(folder)], check=True)


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'file').touch()
    cache = EngineCache(tmp_path / 'file' / 'engines')
    with pytest.raises(CacheError, match='choose another folder'):
        cache.store(KEY, PLAN)
    assert cache.entries() == []
    assert cache.lookup(KEY).plan is None


def keys(count):
    return [replace(KEY, sm=number) for number in range(count)]


def used_at(cache, key, seconds):
    os.utime(files(cache, key)[0], (seconds, seconds))


def test_the_longest_unused_go_first(tmp_path):
    cache = EngineCache(tmp_path, limit_mb=3)
    a, b, c, d = keys(4)
    plan = bytes(1_000_000)
    for number, key in enumerate((a, b, c)):
        cache.store(key, plan)
        used_at(cache, key, 1000 + number)
    assert len(cache.entries()) == 3
    assert cache.lookup(a).plan  # now the last used
    cache.store(d, plan)
    assert [cache.lookup(key).plan is not None for key in (a, b, c, d)] == [
        True, False, True, True]


def test_the_newest_stays_even_if_it_is_too_large(tmp_path):
    cache = EngineCache(tmp_path, limit_mb=1)
    a, b = keys(2)
    cache.store(a, bytes(900_000))
    cache.store(b, bytes(2_000_000))
    assert cache.lookup(a).plan is None
    assert cache.lookup(b).plan is not None
    with pytest.raises(CacheError, match='1 or more'):
        EngineCache(tmp_path, limit_mb=0)


def test_prune_removes_what_is_asked_for(cache):
    old, new, broken = keys(3)
    for key in (old, new, broken):
        stored(cache, key, bytes(1_000_000))
    used_at(cache, old, time.time() - 10 * 86400)
    files(cache, broken)[0].write_bytes(b'x')
    leftovers = [f'{KEY.digest()}.new', f'.{KEY.digest()}.new.abc.part',
                 f'.{KEY.digest()}.engine.json.x.part']
    for name in leftovers:
        (cache.folder / name).touch()
    foreign = ['notes.txt', 'x.engine', '.hidden', f'{"G" * 32}.engine']
    for name in foreign:
        (cache.folder / name).touch()
    removed = {path.name for path in cache.prune()}
    assert removed == {files(cache, broken)[0].name, *leftovers}
    assert cache.lookup(new).plan
    assert cache.prune(unused_days=11) == []
    assert cache.prune(unused_days=9) == [files(cache, old)[0]]
    stored(cache, old, bytes(1_000_000))
    used_at(cache, old, 1000)
    assert cache.prune(limit_mb=2) == []
    assert cache.prune(limit_mb=1) == [files(cache, old)[0]]
    cache.timing_cache('tensorrt', '10.3.0', 87).touch()
    assert {path.suffix for path in cache.prune(everything=True)} == {'.engine', '.timing'}
    # what is not the cache's stays, in a folder that was named by mistake
    assert sorted(path.name for path in cache.folder.iterdir()) == sorted(foreign)


def test_lock_that_prune_removed_is_no_lock(cache):
    """Who waited for a lock file that is gone takes the new one: two never hold it."""
    order = []

    def second():
        with cache._lock(KEY.digest()):
            order.append('second')

    first = cache._lock(KEY.digest())
    first.__enter__()
    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.2)  # the second waits for the file that is now removed
    cache._lock_path(KEY.digest()).unlink()
    with cache._lock(KEY.digest(), wait=False) as held:
        assert held
        first.__exit__(None, None, None)  # the second gets the lock of a file that is gone
        time.sleep(0.2)
        assert order == []
    thread.join(10)
    assert order == ['second']

"""The CUDA layer over a fake runtime that holds it to CUDA's rules, and over the real library."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from pathlib import Path
import subprocess
import sys

from depth_node.backends import BackendError, cuda
from depth_node.backends.cuda import Cuda, CudaError
import numpy as np
import pytest

ROOT = Path(cuda.__file__).parents[2]
PIXELS = (6, 10)


def resident_kib() -> int:
    """Return this process's resident memory."""
    text = Path('/proc/self/status').read_text()
    return int(text.split('VmRSS:')[1].split()[0])


class Scene:
    """One picture through the stand-in kernel, as a backend would do it."""

    def __init__(self, fake, gpu):
        self.fake, self.gpu = fake, gpu
        self.count = PIXELS[0] * PIXELS[1]
        self.stream = gpu.stream_create()
        self.host_in = gpu.host_alloc(3 * self.count)
        self.host_out = gpu.host_alloc(4 * self.count)
        self.device_in = gpu.malloc(3 * self.count)
        self.device_out = gpu.malloc(4 * self.count)
        self.picture = self.host_in.array((*PIXELS, 3), np.uint8)
        self.depth = self.host_out.array(PIXELS, np.float32)

    def enqueue(self, gain=0.5):
        self.gpu.copy_to_device(self.device_in, self.host_in.address, 3 * self.count, self.stream)
        code = self.fake.lib.fakeDepth(
            self.stream, self.device_out, self.device_in, self.count, 0, gain, 1.0)
        if code:
            raise BackendError(f'kernel: {code}')
        self.gpu.copy_to_host(self.host_out.address, self.device_out, 4 * self.count, self.stream)

    def wanted(self, gain=0.5):
        return gain * (self.picture.astype(np.float64) @ [1, 2, 3]) / 3 + 1.0


def test_names_what_is_here(fake):
    with Cuda.open() as gpu:
        assert gpu.device_name() == 'Fake Orin'
        assert gpu.compute_capability() == (8, 7)
        assert (gpu.runtime_version, gpu.driver_version) == ('13.0', '13.0')
        assert gpu.total_memory() == 1 << 30
        assert not gpu.integrated
        assert gpu.graphs
    assert fake.live() == {}


def test_work_runs_when_the_stream_is_waited_for(fake):
    with Cuda.open() as gpu:
        scene = Scene(fake, gpu)
        scene.picture[:] = np.random.default_rng(0).integers(0, 256, scene.picture.shape)
        scene.depth[:] = -1
        scene.enqueue()
        assert (scene.depth == -1).all()
        gpu.stream_synchronize(scene.stream)
        np.testing.assert_allclose(scene.depth, scene.wanted(), rtol=1e-6)


def test_ten_thousand_frames_keep_handles_and_memory_flat(fake):
    with Cuda.open() as gpu:
        scene = Scene(fake, gpu)
        graph = gpu.record(scene.stream, scene.enqueue)
        before = fake.live()
        rss = 0
        for frame in range(10_000):
            scene.picture[:] = frame % 256
            gpu.launch(graph, scene.stream)
            gpu.stream_synchronize(scene.stream)
            assert scene.depth[3, 7] == 0.5 * 2 * (frame % 256) + 1
            if frame == 1000:
                rss = resident_kib()
        assert resident_kib() - rss < 512
        assert fake.live() == before
        assert before == {'device': 2, 'pinned': 2, 'stream': 1, 'exec': 1}
    del scene
    assert fake.live() == {}


def test_graph_replays_what_was_recorded_and_nothing_runs_while_recording(fake):
    with Cuda.open() as gpu:
        scene = Scene(fake, gpu)
        scene.picture[:] = 10
        scene.depth[:] = -1
        graph = gpu.record(scene.stream, scene.enqueue)
        gpu.stream_synchronize(scene.stream)
        assert (scene.depth == -1).all()
        for level in (10, 200):
            scene.picture[:] = level
            gpu.launch(graph, scene.stream)
            gpu.stream_synchronize(scene.stream)
            np.testing.assert_allclose(scene.depth, scene.wanted())
        again = gpu.record(scene.stream, lambda: scene.enqueue(gain=2.0))
        gpu.graph_destroy(graph)
        gpu.launch(again, scene.stream)
        gpu.stream_synchronize(scene.stream)
        np.testing.assert_allclose(scene.depth, scene.wanted(2.0))
        assert fake.live()['exec'] == 1


def test_work_that_cannot_be_captured_leaves_the_stream_usable(fake):
    with Cuda.open() as gpu:
        scene = Scene(fake, gpu)
        scene.picture[:] = 7
        with pytest.raises(CudaError, match='cannot be captured into a graph'):
            gpu.record(scene.stream, lambda: gpu.stream_synchronize(scene.stream))
        with pytest.raises(ZeroDivisionError):
            gpu.record(scene.stream, lambda: 1 // 0)
        assert fake.last_error() == 0
        scene.enqueue()
        gpu.stream_synchronize(scene.stream)
        np.testing.assert_allclose(scene.depth, scene.wanted())
        assert {'graph', 'exec'}.isdisjoint(fake.live())


def test_every_call_that_can_fail_fails_cleanly_and_frees_everything(fake):
    """Fails each call in turn until one whole run goes through."""
    def session():
        with Cuda.open() as gpu:
            gpu.device_name()
            gpu.total_memory()
            scene = Scene(fake, gpu)
            gpu.host_alloc(64, mapped=True)
            start, end = gpu.event_create(), gpu.event_create()
            graph = gpu.record(scene.stream, scene.enqueue)
            gpu.event_record(start, scene.stream)
            gpu.launch(graph, scene.stream)
            gpu.event_record(end, scene.stream)
            gpu.stream_synchronize(scene.stream)
            gpu.elapsed_ms(start, end)

    errors = []
    for call in range(1, 200):
        fake.reset()
        fake.fail_at(call, 999)
        try:
            session()
        except CudaError as error:
            errors.append(str(error))
        done = fake.calls() < call
        fake.fail_at(0, 0)
        assert fake.live() == {}, f'call {call}'
        assert fake.bad_frees() == 0
        assert fake.last_error() == 0
        if done:
            break
    else:
        pytest.fail('the session never ended')
    assert all('999' in text for text in errors)
    for function in ('cudaMalloc', 'cudaHostAlloc', 'cudaHostGetDevicePointer', 'cudaMemcpyAsync',
                     'cudaStreamBeginCapture', 'cudaStreamEndCapture', 'cudaEventCreate',
                     'cudaGraphInstantiateWithFlags', 'cudaGraphLaunch', 'cudaStreamSynchronize'):
        assert any(function in text for text in errors), function


def test_out_of_memory_says_how_much_there_is_and_is_no_end(fake):
    fake.device(memory=4 << 20)
    with Cuda.open() as gpu:
        held = gpu.malloc(3 << 20)
        with pytest.raises(CudaError, match=r'cudaMalloc of 2\.0 MiB: out of memory.*1\.0 MiB of '
                                            r'4\.0 MiB are free') as caught:
            gpu.malloc(2 << 20)
        assert (caught.value.code, caught.value.name) == (2, 'cudaErrorMemoryAllocation')
        assert fake.last_error() == 0
        gpu.free(held)
        gpu.malloc(2 << 20)


def test_sticky_error_stays_and_says_to_restart(fake):
    with Cuda.open() as gpu:
        scene = Scene(fake, gpu)
        pageable = ctypes.create_string_buffer(4 * scene.count)
        fake.lib.fakeDepth(scene.stream, ctypes.addressof(pageable), scene.device_in,
                           scene.count, 0, 1.0, 0.0)
        with pytest.raises(CudaError, match=r'illegal memory access.*restart it') as caught:
            gpu.stream_synchronize(scene.stream)
        assert caught.value.sticky
        calls = fake.calls()
        for _ in range(3):
            with pytest.raises(CudaError, match='illegal memory access'):
                gpu.malloc(1)
        assert fake.calls() == calls, 'the damaged context was called again'
    del scene
    assert fake.live() == {}


def test_handles_are_freed_once(fake):
    gpu = Cuda.open()
    address, stream, event = gpu.malloc(8), gpu.stream_create(), gpu.event_create()
    for _ in range(2):
        gpu.free(address)
        gpu.stream_destroy(stream)
        gpu.event_destroy(event)
        gpu.close()
    assert fake.live() == {}
    assert fake.bad_frees() == 0
    with pytest.raises(CudaError, match='was closed'):
        gpu.malloc(8)


def test_forgotten_object_frees_its_handles(fake):
    gpu = Cuda.open()
    gpu.malloc(8)
    gpu.stream_create()
    del gpu
    assert fake.live() == {}


def test_array_keeps_its_memory_after_everything_else_is_gone(fake):
    gpu = Cuda.open()
    whole = gpu.host_alloc(24).array((2, 3), np.float32)
    whole[:] = 4.5
    part = whole[1, 1:]
    gpu.close()
    del gpu, whole
    assert fake.live() == {'pinned': 1}
    assert part.tolist() == [4.5, 4.5]
    del part
    assert fake.live() == {}


def test_array_larger_than_its_buffer_is_refused(fake):
    with Cuda.open() as gpu:
        buffer = gpu.host_alloc(20)
        with pytest.raises(ValueError, match='24 bytes, the buffer has 20'):
            buffer.array((2, 3), np.float32)


def test_mapped_memory_has_an_address_on_the_gpu(fake):
    fake.device(integrated=True)
    with Cuda.open() as gpu:
        assert gpu.integrated
        picture = gpu.host_alloc(3, mapped=True)
        depth = gpu.host_alloc(4, mapped=True)
        stream = gpu.stream_create()
        picture.array((3,), np.uint8)[:] = [1, 2, 3]
        assert depth.device_address not in (None, depth.address)
        fake.lib.fakeDepth(stream, depth.device_address, picture.device_address, 1, 0, 3.0, 1.0)
        gpu.stream_synchronize(stream)
        assert depth.array((1,), np.float32).tolist() == [15.0]
        assert gpu.host_alloc(4).device_address is None
        del picture, depth


def test_events_take_the_gpus_time(fake):
    with Cuda.open() as gpu:
        scene = Scene(fake, gpu)
        start, end = gpu.event_create(), gpu.event_create()
        gpu.event_record(start, scene.stream)
        scene.enqueue()
        gpu.event_record(end, scene.stream)
        gpu.stream_synchronize(scene.stream)
        assert gpu.elapsed_ms(start, end) == 1.0  # three works and the event, 0.25 ms each
        del scene


# --- why there is no GPU


@pytest.mark.parametrize(('settings', 'environment', 'parts'), [
    ({'driver': 0}, None, ['no NVIDIA driver answers', '35']),
    ({'driver': 11040}, None, ['driver is too old', 'CUDA 11.4', 'CUDA 13.0', '580']),
    ({'count': 0}, None, ['finds no GPU', 'nvidia-smi', '--gpus all']),
    ({'count': 0}, '7', ["CUDA_VISIBLE_DEVICES is '7'", 'unset it']),
    ({'error': 803}, None, ['restart the machine', '803']),
])
def test_refusals_say_what_is_missing(fake, monkeypatch, settings, environment, parts):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if environment is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', environment)
    fake.device(**settings)
    with pytest.raises(CudaError) as caught:
        Cuda.open()
    for part in parts:
        assert part in str(caught.value)
        assert part in cuda.why_not()
    fake.device()
    assert cuda.why_not() == ''


@pytest.mark.parametrize(('nodes', 'pci', 'part'), [
    ({'/dev/nvidiactl'}, False, 'docker run --gpus all'),
    (set(), True, 'driver is not loaded: install it'),
    (set(), False, 'There is no NVIDIA GPU'),
])
def test_no_driver_tells_the_cases_apart(fake, monkeypatch, nodes, pci, part):
    class Node:
        def __init__(self, path):
            self.path = path

        def exists(self):
            return self.path in nodes

    monkeypatch.setattr(cuda, 'Path', Node)
    monkeypatch.setattr(cuda, '_nvidia_on_pci', lambda: pci)
    fake.device(driver=0)
    assert part in cuda.why_not()


@pytest.mark.parametrize(('vendor', 'kind', 'found'), [
    ('0x10de\n', '0x030000\n', True), ('0x10de\n', '0x0c0330\n', False),
    ('0x8086\n', '0x030000\n', False), (None, '0x030000\n', False)])
def test_nvidia_card_on_the_bus(tmp_path, vendor, kind, found):
    device = tmp_path / '0000:01:00.0'
    device.mkdir()
    if vendor is not None:
        (device / 'vendor').write_text(vendor)
    (device / 'class').write_text(kind)
    assert cuda._nvidia_on_pci(tmp_path) is found
    assert not cuda._nvidia_on_pci(tmp_path / 'no such folder')


def test_no_library_names_what_to_install():
    with pytest.raises(CudaError, match=r'libcudart\.so\.13.*pip install nvidia-cuda-runtime.*'
                                        'nvidia-jetpack'):
        Cuda.open(['libcudart.so.99', '/no/such/libcudart.so.13'])


def test_library_that_is_none(tmp_path):
    path = tmp_path / 'libcudart.so.13'
    path.write_bytes(b'not a library')
    with pytest.raises(CudaError, match=str(path)):
        Cuda.open([str(path)])
    libm = ctypes.util.find_library('m') or pytest.skip('no libm')
    with pytest.raises(CudaError, match=f'{libm} has no cudaGetDeviceCount'):
        Cuda.open([libm])


def test_a_library_that_the_driver_can_serve_is_taken_before_none(fake, tmp_path):
    """Libraries that are missing or broken do not hide the one that works."""
    broken = tmp_path / 'libcudart.so.13'
    broken.write_bytes(b'')
    with Cuda.open(['libcudart.so.99', str(broken), fake.path]) as gpu:
        assert gpu.library == fake.path


def test_libraries_are_looked_for_where_wheels_keep_them(tmp_path, monkeypatch):
    folder = tmp_path / 'nvidia' / 'cuda_runtime' / 'lib'
    folder.mkdir(parents=True)
    (folder / 'libcudart.so.12').write_bytes(b'')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'nvidia', raising=False)
    found = list(cuda._libraries())
    assert found.index('libcudart.so.13') < found.index('libcudart.so.12')
    assert str(folder / 'libcudart.so.12') in found


def real_library() -> str | None:
    """Return the real libcudart of this machine, if it has one."""
    for library in cuda._libraries():
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return library
    return None


@pytest.mark.skipif(real_library() is None, reason='no libcudart is installed')
@pytest.mark.skipif(os.path.exists('/dev/nvidiactl'), reason='this machine has a driver')
def test_real_library_without_a_driver():
    """NVIDIA's own library, declared and called: error 35, in a process that ends in peace."""
    code = ('from depth_node.backends import cuda; import sys\n'
            'try:\n    cuda.Cuda(sys.argv[1])\n'
            'except cuda.CudaError as error:\n    print(error.code, error.name, error)')
    result = subprocess.run(
        [sys.executable, '-c', code, real_library()], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert (result.returncode, result.stderr) == (0, '')
    assert result.stdout.startswith('35 cudaErrorInsufficientDriver no NVIDIA driver answers')


# --- the end of the process

FORGETFUL = """
import atexit, ctypes, sys
lib = ctypes.CDLL(sys.argv[1])
# the first one registered runs last
atexit.register(lambda: print(*(lib.fakeLive(kind) for kind in (0, 2, 5))))
from depth_node.backends.cuda import Cuda
import numpy as np
gpu = Cuda.open([sys.argv[1]])
stream = gpu.stream_create()
memory = gpu.malloc(1000)
array = gpu.host_alloc(1000).array((10,), np.float32)
graph = gpu.record(stream, lambda: None)
sys.keep = gpu, array  # lives until the interpreter has fallen apart
"""


@pytest.mark.parametrize('ending', ['', 'raise SystemExit(0)', 'del gpu, array, sys.keep'])
def test_interpreter_that_exits_with_everything_open(fake_library, tmp_path, ending):
    report = tmp_path / 'report'
    result = subprocess.run(
        [sys.executable, '-c', FORGETFUL + ending, fake_library.path], capture_output=True,
        text=True, env={**os.environ, 'PYTHONPATH': str(ROOT),
                        'FAKE_CUDART_REPORT': str(report)})
    assert (result.returncode, result.stderr) == (0, '')
    assert result.stdout == '0 0 0\n', 'something lived on when Python took itself apart'
    device, pinned, stream, event, graph, exec_, bad = map(int, report.read_text().split())
    assert (device, stream, event, graph, exec_, bad) == (0, 0, 0, 0, 0, 0)
    assert pinned == (0 if ending.startswith('del') else 1)  # an array may be read to the end

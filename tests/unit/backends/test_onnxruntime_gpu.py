"""ONNX Runtime on a GPU: what its TensorRT provider is told, and pictures in GPU memory.

Its session is a real one, on the CPU; the fake libcudart's GPU memory is memory that it can read.
"""

from __future__ import annotations

from pathlib import Path

from depth_node.backends import BackendError, availability, cuda, open_backend
from depth_node.model_card import ModelCard
import numpy as np
import pytest

ort = pytest.importorskip('onnxruntime')


class Binding:
    """Takes the stand-in's GPU memory for what it is."""

    def __init__(self, real):
        self.real = real

    def bind_input(self, name, device, number, dtype, shape, address):
        Session.bound.append(device)
        assert (device, number) in (('cpu', 0), ('cuda', 0))
        self.real.bind_input(name, 'cpu', 0, dtype, shape, address)

    def bind_output(self, name, device, *rest):
        assert device == 'cpu'
        self.real.bind_output(name, device, *rest)


class Session:
    """ONNX Runtime's session on the CPU, which says that it runs on TensorRT."""

    asked = ()
    bound: list[str] = []  # noqa: RUF012

    def __init__(self, path, options=None, providers=None):
        Session.asked = providers
        self._real = ort.capi.onnxruntime_inference_collection.InferenceSession(
            path, options, providers=['CPUExecutionProvider'])

    def get_providers(self):
        first = Session.asked[0]
        return [first if isinstance(first, str) else first[0]]

    def io_binding(self):
        return Binding(self._real.io_binding())

    def run_with_iobinding(self, binding):
        self._real.run_with_iobinding(binding.real)

    def __getattr__(self, name):
        return getattr(self._real, name)


@pytest.fixture
def options(monkeypatch, tmp_path):
    """Return a function that opens a card by the provider; returns what it was told."""
    monkeypatch.setattr(ort, 'get_available_providers', lambda: [
        'TensorrtExecutionProvider', 'CUDAExecutionProvider', 'CPUExecutionProvider'])
    monkeypatch.setattr(cuda, 'why_not', lambda: '')
    monkeypatch.setattr(ort, 'InferenceSession', Session)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))

    def told(card: ModelCard, precision='auto', cache_dir=None, lines=None):
        with open_backend(card, 'onnxruntime-tensorrt', precision, cache_dir=cache_dir,
                          tell=(lines if lines is not None else []).append) as backend:
            name, found = Session.asked[0]
            assert name == 'TensorrtExecutionProvider'
            assert Session.asked[1:] == ['CUDAExecutionProvider']
            hw = card.input.size_hw or (16, 32)
            batch = np.full((1, *hw, 3), 100, np.uint8)
            np.testing.assert_allclose(backend.run(batch)['depth'], 4.5, rtol=1e-5)
        assert all(isinstance(value, str) for value in found.values())
        return found
    return told


def test_fixed_network(options, tiny_card, tmp_path):
    found = options(tiny_card(), cache_dir=tmp_path / 'c')
    folder = Path(found['trt_engine_cache_path'])
    assert found == {
        'trt_fp16_enable': '1', 'trt_max_workspace_size': str(1024 << 20),
        'trt_engine_cache_enable': '1', 'trt_timing_cache_enable': '1',
        'trt_engine_cache_path': str(folder), 'trt_timing_cache_path': str(folder)}
    assert folder.parent == tmp_path / 'c' / 'onnxruntime-tensorrt'
    assert folder.stat().st_mode & 0o777 == 0o700


def test_dynamic_network_has_the_profile_of_the_card(options, tiny_card):
    card = tiny_card(dynamic=True)  # 16x16 to 80x80 in steps of 8
    found = options(card)
    assert {key: value for key, value in found.items() if 'profile' in key} == {
        'trt_profile_min_shapes': 'image:1x16x16x3',
        'trt_profile_opt_shapes': 'image:1x48x48x3',
        'trt_profile_max_shapes': 'image:1x80x80x3'}


def test_engines_of_other_weights_precisions_and_versions_are_apart(
    options, tiny_card, tmp_path, monkeypatch
):
    def folder(card, precision='fp16'):
        return Path(options(card, precision)['trt_engine_cache_path'])

    card = tiny_card()
    first = folder(card)
    assert first.parent == tmp_path / 'home' / 'depth_node' / 'onnxruntime-tensorrt'
    assert folder(card) == first
    assert card.precisions['fp32'].sha256[:32] in first.name
    assert folder(card, 'fp32') != first
    other = tiny_card('other', offset=0.500001)  # names and shapes are the same
    assert folder(other) != first
    monkeypatch.setattr(ort, '__version__', '9.9.9')
    assert folder(card) != first


def test_folder_that_cannot_be_made_costs_the_cache_alone(options, tiny_card, tmp_path):
    (tmp_path / 'c').mkdir()
    (tmp_path / 'c' / 'onnxruntime-tensorrt').write_text('a file where the folder should be')
    lines = []
    found = options(tiny_card(), cache_dir=tmp_path / 'c', lines=lines)
    assert not [key for key in found if 'cache' in key]
    assert any('built and not kept' in line for line in lines)


def test_other_routes_are_told_nothing(options, tiny_card):
    assert availability('onnxruntime-cuda').version == ort.__version__
    from depth_node.backends.onnxruntime import _providers

    card = tiny_card(dynamic=True)
    assert _providers('onnxruntime', card, 'fp32', None) == ['CPUExecutionProvider']
    assert _providers('onnxruntime-cuda', card, 'fp16', None) == ['CUDAExecutionProvider']


# --- pictures in GPU memory


class Lent:
    """A picture in the fake GPU's memory, which its owner's stream has not written yet."""

    def __init__(self, gpu, values, *, stream='own'):
        self.gpu, self.values = gpu, values
        self._stream = gpu.stream_create()
        self._told = self._stream if stream == 'own' else stream
        self.memory, self._staging = gpu.malloc(values.nbytes), gpu.host_alloc(values.nbytes)
        self.write(values)

    def write(self, values):
        self.values = values
        self._staging.array(values.shape, values.dtype)[:] = values
        self.gpu.copy_to_device(self.memory, self._staging.address, values.nbytes, self._stream)

    @property
    def __cuda_array_interface__(self):
        described = {'shape': self.values.shape, 'typestr': self.values.dtype.str,
                     'data': (self.memory, False), 'version': 3}
        return described if self._told == 'unknown' else {**described, 'stream': self._told}


def depth_of(values):
    return 0.02 * (values[0].astype(np.float64) @ [1, 2, 3]) / 3 + 0.5


def some(size_hw, seed):
    return np.random.default_rng(seed).integers(0, 256, (1, *size_hw, 3), np.uint8)


@pytest.fixture
def on_gpu(options, tiny_card, fake, monkeypatch):
    """Return a backend by the CUDA provider on the stand-in, and the owner of pictures."""
    def opened(name='onnxruntime-cuda', **card):
        return open_backend(tiny_card(**card), name, 'fp32', tell=lambda line: None)

    Session.bound.clear()
    with cuda.Cuda.open() as gpu:
        yield opened, gpu


@pytest.mark.parametrize('name', ['onnxruntime-cuda', 'onnxruntime-tensorrt'])
@pytest.mark.parametrize('stream', ['own', 'unknown'])
def test_picture_in_gpu_memory_is_bound_where_it_lies(on_gpu, fake, name, stream):
    opened, gpu = on_gpu
    with opened(name) as backend:
        lent = Lent(gpu, some((24, 40), 1), stream=stream)
        host = np.empty((1, 24, 40, 3), np.uint8)  # the same memory each time
        for seed in (1, 2, 3):
            lent.write(some((24, 40), seed))
            Session.bound.clear()
            got = backend.run(lent)['depth'][0, 0]
            np.testing.assert_allclose(got, depth_of(lent.values), rtol=1e-5)
            assert Session.bound == ['cuda']
            host[:] = some((24, 40), seed + 10)
            np.testing.assert_allclose(backend.run(host)['depth'][0, 0], depth_of(host),
                                       rtol=1e-5)
            assert Session.bound == ['cuda', 'cpu']
        before = fake.live()
    # what the backend had of the GPU is gone, what the owner has is not
    assert before == fake.live() == {'device': 1, 'pinned': 1, 'stream': 1}


def test_sizes_of_lent_pictures_may_change(on_gpu):
    opened, gpu = on_gpu
    with opened(dynamic=True) as backend:
        for size_hw in ((16, 32), (80, 80), (16, 32)):
            lent = Lent(gpu, some(size_hw, 4))
            for _ in range(2):
                got = backend.run(lent)['depth'][0, 0]
                np.testing.assert_allclose(got, depth_of(lent.values), rtol=1e-5)


@pytest.mark.parametrize(('change', 'message'), [
    ('device', 'on GPU 1, this backend on GPU 0'), ('shape', r'input has shape \(1, 25, 40, 3\)'),
    ('dtype', 'input is float32'), ('closed', 'it is closed')])
def test_lent_pictures_that_do_not_fit(on_gpu, fake, change, message):
    opened, gpu = on_gpu
    backend = opened()
    values = some((25 if change == 'shape' else 24, 40), 1)
    lent = Lent(gpu, values.astype(np.float32) if change == 'dtype' else values)
    if change == 'device':
        fake.lib.fakeMove(lent.memory, 1)
    if change == 'closed':
        backend.close()
    with pytest.raises(BackendError, match=message):
        backend.run(lent)
    if change != 'closed':
        sound = Lent(gpu, some((24, 40), 5))
        np.testing.assert_allclose(backend.run(sound)['depth'][0, 0], depth_of(sound.values),
                                   rtol=1e-5)
    backend.close()

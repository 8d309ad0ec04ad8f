"""The TensorRT backend from the card to the numbers, over the real cache and builder.

A stand-in for TensorRT runs the network on the fake GPU's memory (tests/data/fake_tensorrt).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
from pathlib import Path
import subprocess
import sys
import threading

from depth_node import backends
from depth_node.backends import BackendError, cuda, open_backend, runnable, self_check
from depth_node.backends import tensorrt as tensorrt_backend
from depth_node.backends.engine_cache import CacheError, EngineCache, engines_folder
from depth_node.backends.tensorrt_build import build_in_child, build_plan
from depth_node.model_card import FileSpec, ModelCard, file_sha256
import numpy as np
import pytest

pytest.importorskip('onnx')

ROOT = Path(cuda.__file__).parents[2]
FAKE = Path(__file__).resolve().parents[2] / 'data' / 'fake_tensorrt'
SIZE_HW = (24, 40)


def picture(size_hw=SIZE_HW, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (1, *size_hw, 3), np.uint8)


def expected(batch, gain=0.02, offset=0.5):
    return gain * (batch[0].astype(np.float64) @ [1, 2, 3]) / 3 + offset


def resident_kib() -> int:
    text = Path('/proc/self/status').read_text()
    return int(text.split('VmRSS:')[1].split()[0])


def build_here(request, out, progress=None, module='tensorrt'):
    """Build as the child would, without the half second that a process takes."""
    out.write_bytes(build_plan(importlib.import_module(module), request, progress))


class FakeTensorRT:
    """Sets what TensorRT and the GPU are like, and opens cards."""

    def __init__(self, fake, monkeypatch, cache):
        self.gpu, self.cache = fake, cache
        self._monkeypatch = monkeypatch
        self.lines = []
        self.set()

    def set(self, **settings):
        self._monkeypatch.setenv('FAKE_TENSORRT', json.dumps(settings))
        self._monkeypatch.delitem(sys.modules, 'tensorrt', raising=False)
        self.module = importlib.import_module('tensorrt')

    def open(self, card, precision='auto', backend='tensorrt'):
        return open_backend(card, backend, precision, cache_dir=self.cache,
                            log=self.lines.append)

    def builds(self):
        return sum('building the' in line for line in self.lines)

    def engines(self):
        return EngineCache(engines_folder(self.cache)).entries()


@pytest.fixture
def tensorrt(fake, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FAKE)
    monkeypatch.setenv('FAKE_CUDART', fake.path)
    monkeypatch.setattr(tensorrt_backend, 'build_in_child', build_here)
    stand_in = FakeTensorRT(fake, monkeypatch, tmp_path / 'cache')
    yield stand_in
    gc.collect()
    sys.modules.pop('tensorrt', None)


def as_fp16(card: ModelCard, key: str = 'fp16') -> ModelCard:
    """Give a card a file with FP16 weights, which the stand-in takes for a typed FP16 network."""
    import onnx
    from onnx import numpy_helper

    source = card.precisions['fp32'].path
    model = onnx.load(str(source))
    for each in model.graph.initializer:
        each.CopyFrom(numpy_helper.from_array(
            numpy_helper.to_array(each).astype(np.float16), each.name))
    path = source.with_name(f'{source.stem}.{key}.onnx')
    onnx.save(model, str(path))
    card.precisions[key] = FileSpec(path, file_sha256(path))
    return card


# --- numbers


@pytest.mark.parametrize('integrated', [False, True])
def test_computes_the_closed_form_through_the_gpus_memory(tensorrt, tiny_card, integrated):
    tensorrt.gpu.device(integrated=integrated)
    with tensorrt.open(tiny_card()) as backend:
        assert (backend.name, backend.precision) == ('tensorrt', 'fp16')
        assert (backend.device, backend.version) == ('Fake Orin (SM 8.7)', '8.6.1')
        for seed in range(5):
            batch = picture(seed=seed)
            got = backend.run(batch)
            assert list(got) == ['depth']
            assert got['depth'].dtype == np.float32
            np.testing.assert_allclose(got['depth'][0, 0], expected(batch), rtol=1e-5)
        assert self_check(backend).ok
    del got
    assert tensorrt.gpu.live() == {}


def test_float_layout(tensorrt, tiny_card):
    with tensorrt.open(tiny_card(layout='float32_nchw')) as backend:
        batch = np.random.default_rng(0).normal(size=(1, 3, *SIZE_HW)).astype(np.float32)
        wanted = 0.02 / 3 * np.einsum('chw,c->hw', batch[0].astype(np.float64), [1, 2, 3]) + 0.5
        for _ in range(3):
            np.testing.assert_allclose(backend.run(batch)['depth'][0, 0], wanted, atol=1e-5)


def test_batches_that_lie_elsewhere_or_not_in_a_row(tensorrt, tiny_card):
    with tensorrt.open(tiny_card()) as backend:
        for seed in (3, 4, 3):
            batch = picture((SIZE_HW[0], 2 * SIZE_HW[1]), seed)[:, :, ::2]
            np.testing.assert_allclose(
                backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)


def test_outputs_that_the_card_does_not_name_have_memory_too(tensorrt, tiny_card):
    tensorrt.set(extra_output=True)
    for integrated in (False, True):
        tensorrt.gpu.device(integrated=integrated)
        with tensorrt.open(tiny_card()) as backend:
            batch = picture()
            got = backend.run(batch)
            assert list(got) == ['depth']
            np.testing.assert_allclose(got['depth'][0, 0], expected(batch), rtol=1e-5)


def test_ten_thousand_frames_keep_handles_and_memory_flat(tensorrt, tiny_card):
    with tensorrt.open(tiny_card()) as backend:
        batch = picture()
        backend.run(batch)
        before, rss = {}, 0
        for frame in range(10_000):
            batch[0, 5, 6] = frame % 256
            depth = backend.run(batch)['depth']
            assert depth[0, 0, 5, 6] == pytest.approx(0.02 * 2 * (frame % 256) + 0.5)
            if frame == 1000:
                before, rss = tensorrt.gpu.live(), resident_kib()
        assert resident_kib() - rss < 512
        assert tensorrt.gpu.live() == before
        assert before == {'device': 2, 'pinned': 2, 'stream': 1, 'exec': 1}


# --- graphs and shapes


def test_a_replayed_frame_is_two_calls(tensorrt, tiny_card):
    with tensorrt.open(tiny_card()) as backend:  # its self-check was the first run
        batch = picture()
        backend.run(batch)
        tensorrt.gpu.fail_at(0, 0)
        for _ in range(10):
            backend.run(batch)
        assert tensorrt.gpu.calls() == 20  # launch and wait
        assert backend.graph_problem == ''


def test_shared_memory_needs_no_copies(tensorrt, tiny_card):
    tensorrt.gpu.device(integrated=True)
    with tensorrt.open(tiny_card()) as backend:
        backend.run(picture())
        assert tensorrt.gpu.live() == {'pinned': 2, 'stream': 1, 'exec': 1}


def test_graph_is_recorded_anew_for_every_shape(tensorrt, tiny_card):
    with tensorrt.open(tiny_card(dynamic=True)) as backend:
        addresses = [each.device for each in backend._tensors]
        for size_hw in [(16, 32), (24, 40), (80, 80), (16, 16), (16, 32)]:
            for seed in range(3):
                batch = picture(size_hw, seed)
                got = backend.run(batch)['depth']
                assert got.shape == (1, 1, *size_hw)
                np.testing.assert_allclose(got[0, 0], expected(batch), rtol=1e-5)
            # the buffers of the largest input serve all
            assert [each.device for each in backend._tensors] == addresses
            assert tensorrt.gpu.live() == {'device': 2, 'pinned': 2, 'stream': 1, 'exec': 1}
        assert backend.graph_problem == ''


@pytest.mark.parametrize('size_hw', [(8, 32), (88, 32), (20, 32)])
def test_shape_that_the_engine_does_not_take(tensorrt, tiny_card, size_hw):
    with tensorrt.open(tiny_card(dynamic=True)) as backend:
        wanted = r'the engine takes \(1, 16, 16, 3\) to \(1, 80, 80, 3\)|multiples of 8'
        with pytest.raises(BackendError, match=wanted):
            backend.run(picture(size_hw))
        batch = picture((24, 40))
        np.testing.assert_allclose(backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)


def test_without_graphs_the_work_is_enqueued(tensorrt, tiny_card):
    tensorrt.gpu.device(capture=False)
    with tensorrt.open(tiny_card()) as backend:
        for seed in range(4):
            batch = picture(seed=seed)
            np.testing.assert_allclose(
                backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)
        assert 'Cask convolution failed with 900' in backend.graph_problem
        assert 'exec' not in tensorrt.gpu.live()


def test_graph_that_fails_at_launch_gives_way_within_the_frame(tensorrt, tiny_card):
    with tensorrt.open(tiny_card()) as backend:
        backend.run(picture())
        tensorrt.gpu.fail_at(1, 999)  # the launch
        batch = picture(seed=8)
        np.testing.assert_allclose(backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)
        assert 'cudaGraphLaunch' in backend.graph_problem
        np.testing.assert_allclose(backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)


def test_gpu_times_of_repeated_runs(tensorrt, tiny_card):
    card = tiny_card()
    with tensorrt.open(card) as backend:
        backend.run(picture())
        # upload, network, download and the second event, 0.25 ms each
        assert backend.gpu_times_ms(3) == [1.0, 1.0, 1.0]
        assert 'event' not in tensorrt.gpu.live()
    with pytest.raises(BackendError, match='nothing was run'):
        backend.gpu_times_ms(1)


# --- pictures and results in GPU memory


class OnGpu:
    """An array in the fake GPU's memory, written there by a copy that its stream has not done."""

    version, stream_known, pending = 3, True, 0

    def __init__(self, gpu, values, *, offset=0, strides=None, stream=None):
        self.gpu, self.stream = gpu, gpu.stream_create() if stream is None else stream
        self.values = np.ascontiguousarray(values)
        self.memory = gpu.malloc(self.values.nbytes + offset)
        self.address, self.strides = self.memory + offset, strides
        self.staging = gpu.host_alloc(self.values.nbytes)
        self.write(values)

    def write(self, values):
        self.pending += 1
        self.staging.array(self.values.shape, self.values.dtype)[:] = values
        self.gpu.copy_to_device(self.address, self.staging.address, self.values.nbytes,
                                self.stream)

    @property
    def __cuda_array_interface__(self):
        described = {'shape': self.values.shape, 'typestr': self.values.dtype.str,
                     'data': (self.address, False), 'strides': self.strides,
                     'version': self.version}
        return {**described, 'stream': self.stream} if self.stream_known else described


class Tensor(OnGpu):
    """As torch's, which does not say its stream."""

    version, stream_known, device = 2, False, 'cuda:0'


class NoStream(OnGpu):
    version, stream_known = 2, False


@pytest.fixture
def owner(fake):
    """The CUDA of whoever owns the pictures."""
    with cuda.Cuda.open() as gpu:
        yield gpu


def uploads(tensorrt, backend, batch):
    """Run; return depth and how many copies from the host were done beside the owner's."""
    before = tensorrt.gpu.lib.fakeUploads() + batch.pending
    batch.pending = 0
    depth = backend.run(batch)['depth'][0, 0].copy()
    return depth, tensorrt.gpu.lib.fakeUploads() - before


def read(gpu, array):
    """Bring an array from the GPU as somebody else would."""
    described = array.__cuda_array_interface__
    dtype, shape = np.dtype(described['typestr']), described['shape']
    nbytes = int(np.prod(shape)) * dtype.itemsize
    host, stream = gpu.host_alloc(nbytes), gpu.stream_create()
    gpu.copy_to_host(host.address, described['data'][0], nbytes, stream)
    gpu.stream_synchronize(stream)
    gpu.stream_destroy(stream)
    return host.array(shape, dtype).copy()


def test_picture_in_gpu_memory_is_read_where_it_lies(tensorrt, tiny_card, owner):
    with tensorrt.open(tiny_card()) as backend:
        first = OnGpu(owner, picture(seed=3))
        for seed in (3, 4, 5, 6):  # from the second on by a graph
            batch = picture(seed=seed)
            first.write(batch)
            got, count = uploads(tensorrt, backend, first)
            np.testing.assert_allclose(got, expected(batch), rtol=1e-5)
            assert count == 0
        assert backend.graph_problem == ''
        assert backend._graph is not None
        assert tensorrt.gpu.lib.fakeDeviceSynchronizations() == 0
        second = OnGpu(owner, picture(seed=8))
        np.testing.assert_allclose(backend.run(second)['depth'][0, 0],
                                   expected(second.values), rtol=1e-5)
        np.testing.assert_allclose(backend.run(picture(seed=9))['depth'][0, 0],
                                   expected(picture(seed=9)), rtol=1e-5)
        assert self_check(backend).ok


def test_ten_thousand_pictures_in_gpu_memory_leave_nothing(tensorrt, tiny_card, owner):
    with tensorrt.open(tiny_card()) as backend:
        lent = [OnGpu(owner, picture(seed=seed)) for seed in (0, 1)]
        for _ in range(3):
            [backend.run(each) for each in lent]
        before = tensorrt.gpu.live()
        for count in range(3000):
            backend.run(lent[count % 2])
            backend.run_device(lent[0])
        assert tensorrt.gpu.live() == before
        np.testing.assert_allclose(backend.run(lent[1])['depth'][0, 0],
                                   expected(lent[1].values), rtol=1e-5)


def test_stream_of_a_torch_tensor_is_torchs_current_one(
    tensorrt, tiny_card, owner, monkeypatch
):
    stream = owner.stream_create()
    asked = []

    class Torch:
        pass

    Torch.Tensor = Tensor
    Torch.cuda = Torch()
    Torch.cuda.current_stream = lambda device: asked.append(device) or type(
        'Stream', (), {'cuda_stream': stream})
    monkeypatch.setitem(sys.modules, 'torch', Torch())
    with tensorrt.open(tiny_card()) as backend:
        tensor = Tensor(owner, picture(seed=2), stream=stream)
        got = backend.run(tensor)['depth'][0, 0]
        np.testing.assert_allclose(got, expected(tensor.values), rtol=1e-5)
        assert asked == ['cuda:0']
        assert tensorrt.gpu.lib.fakeDeviceSynchronizations() == 0


def test_default_stream_of_an_owner(tensorrt, tiny_card, owner):
    with tensorrt.open(tiny_card()) as backend:
        for stream in (0, 1):  # as torch and as the interface name it
            lent = OnGpu(owner, picture(seed=stream), stream=stream)
            np.testing.assert_allclose(backend.run(lent)['depth'][0, 0],
                                       expected(lent.values), rtol=1e-5)


def test_owner_that_names_no_stream_costs_a_wait_for_the_gpu(tensorrt, tiny_card, owner):
    with tensorrt.open(tiny_card()) as backend:
        lent = NoStream(owner, picture(seed=2))
        np.testing.assert_allclose(backend.run(lent)['depth'][0, 0], expected(lent.values),
                                   rtol=1e-5)
        assert tensorrt.gpu.lib.fakeDeviceSynchronizations() == 1


def test_picture_at_an_odd_address_is_copied_on_the_gpu(tensorrt, tiny_card, owner):
    for integrated in (False, True):
        tensorrt.gpu.device(integrated=integrated)
        with tensorrt.open(tiny_card()) as backend:
            lent = OnGpu(owner, picture(seed=2), offset=3)
            for seed in (2, 3, 4):
                lent.write(picture(seed=seed))
                got, count = uploads(tensorrt, backend, lent)
                np.testing.assert_allclose(got, expected(picture(seed=seed)), rtol=1e-5)
                assert count == 0


def test_sizes_of_pictures_in_gpu_memory_may_change(tensorrt, tiny_card, owner):
    with tensorrt.open(tiny_card(dynamic=True)) as backend:
        for size_hw in [(16, 32), (80, 80), (16, 32), (24, 40)]:
            lent = OnGpu(owner, picture(size_hw))
            for source in (lent, lent.values, lent, lent, lent.values):
                got = backend.run(source)['depth'][0, 0]
                np.testing.assert_allclose(got, expected(lent.values), rtol=1e-5)


def test_results_stay_on_the_gpu_until_the_next_run(tensorrt, tiny_card, owner):
    for integrated in (False, True):
        tensorrt.gpu.device(integrated=integrated)
        with tensorrt.open(tiny_card()) as backend:
            lent = OnGpu(owner, picture(seed=4))
            for source in (lent, picture(seed=5), lent, lent):
                results = backend.run_device(source)
                assert list(results) == ['depth']
                described = results['depth'].__cuda_array_interface__
                assert (described['shape'], described['typestr']) == ((1, 1, *SIZE_HW), '<f4')
                assert (described['stream'], described['version']) == (None, 3)
                np.testing.assert_allclose(
                    read(owner, results['depth'])[0, 0],
                    expected(getattr(source, 'values', source)), rtol=1e-5)
            backend.run(picture())
            with pytest.raises(BackendError, match='ran again or was closed; copy'):
                results['depth'].__cuda_array_interface__  # noqa: B018
            results = backend.run_device(lent)
        with pytest.raises(BackendError, match='ran again or was closed'):
            results['depth'].__cuda_array_interface__  # noqa: B018


def test_results_that_stay_are_not_downloaded(tensorrt, tiny_card):
    with tensorrt.open(tiny_card()) as backend:
        stale = backend.run(picture(seed=1))['depth'].copy()
        for seed in (2, 3, 4):
            backend.run_device(picture(seed=seed))
        np.testing.assert_array_equal(backend._outputs['depth'], stale)
        backend.close()
        with pytest.raises(BackendError, match='it is closed'):
            backend.run_device(picture())


@pytest.mark.parametrize(('change', 'message'), [
    ('shape', r'input has shape \(1, 25, 40, 3\), model'),
    ('dtype', 'input is float32, model'),
    ('strides', r'has strides \(2880, 3, 72, 1\), \(2880, 120, 3, 1\) are expected: hand over '
                r'tensor\.contiguous'),
    ('device', r"on GPU 1, this backend on GPU 0: hand over tensor.to\('cuda:0'\)"),
    ('host', 'not in the memory of a GPU'),
    ('owner', 'cannot be used: it needs a gradient'),
    ('closed', 'it is closed'),
])
def test_what_cannot_be_lent_is_refused_and_the_backend_goes_on(
    tensorrt, tiny_card, owner, change, message
):
    class Grad(OnGpu):
        @property
        def __cuda_array_interface__(self):
            raise RuntimeError('it needs a gradient')

    backend = tensorrt.open(tiny_card())
    sound = OnGpu(owner, picture(seed=6))
    lent = {
        'shape': lambda: OnGpu(owner, picture((25, 40))),
        'dtype': lambda: OnGpu(owner, picture().astype(np.float32)),
        'strides': lambda: OnGpu(owner, picture(), strides=(2880, 3, 72, 1)),
        'owner': lambda: Grad(owner, picture()),
    }.get(change, lambda: OnGpu(owner, picture()))()
    if change == 'device':
        tensorrt.gpu.lib.fakeMove(lent.memory, 1)
    if change == 'host':
        lent.address = lent.staging.address
    if change == 'closed':
        backend.close()
    for run in (backend.run, backend.run_device):
        with pytest.raises(BackendError, match=message):
            run(lent)
    if change != 'closed':
        for source in (sound, picture(seed=6), sound, sound):
            np.testing.assert_allclose(backend.run(source)['depth'][0, 0],
                                       expected(picture(seed=6)), rtol=1e-5)
    backend.close()


def test_times_of_a_lent_picture_are_not_taken(tensorrt, tiny_card, owner):
    with tensorrt.open(tiny_card()) as backend:
        backend.run(OnGpu(owner, picture()))
        with pytest.raises(BackendError, match='lent and may be gone'):
            backend.gpu_times_ms(1)
        backend.run(picture())
        assert backend.gpu_times_ms(1) == [1.0]


def test_every_call_that_can_fail_with_a_lent_picture(tensorrt, tiny_card, owner):
    card, batch = tiny_card(), picture(seed=2)
    reasons = []
    for call in range(1, 60):
        with tensorrt.open(card, 'fp16') as backend:
            lent = OnGpu(owner, batch)
            tensorrt.gpu.fail_at(call, 999)
            try:
                for _ in range(3):
                    np.testing.assert_allclose(backend.run(lent)['depth'][0, 0],
                                               expected(batch), rtol=1e-5)
            except BackendError as error:
                reasons.append(str(error))
            done = tensorrt.gpu.calls() < call
            tensorrt.gpu.fail_at(0, 0)
            if not done:  # and the next one is whole again
                np.testing.assert_allclose(backend.run(lent)['depth'][0, 0], expected(batch),
                                           rtol=1e-5)
        if done:
            break
    else:
        pytest.fail('it never went through')
    assert len(reasons) > 3
    assert all('999' in reason or 'CUDA fails' in reason for reason in reasons)


def test_other_backends_say_that_they_take_host_memory(tensorrt, tiny_card, owner):
    pytest.importorskip('onnxruntime')
    with tensorrt.open(tiny_card(), 'fp32', 'onnxruntime') as backend:
        with pytest.raises(BackendError, match=r'tensor\.cpu\(\)\.numpy\(\), or use '
                                               'one on the GPU'):
            backend.run(OnGpu(owner, picture()))
        np.testing.assert_allclose(backend.run(picture())['depth'][0, 0], expected(picture()),
                                   rtol=1e-5)


# --- precision


def test_fp16_then_mixed_then_fp32_each_step_named(tensorrt, tiny_card):
    tensorrt.set(errors={'fp16': 0.2, 'mixed': 0.1})
    with tensorrt.open(tiny_card()) as backend:
        assert backend.precision == 'fp32'
        assert [refusal.backend for refusal in backend.refusals] == ['tensorrt'] * 2
        for refusal, name in zip(backend.refusals, ('fp16', 'mixed'), strict=True):
            assert refusal.reason.startswith(f'{name}: self-check failed')
            assert '% off' in refusal.reason
        batch = picture()
        np.testing.assert_allclose(backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)
    assert tensorrt.builds() == 3
    assert sum('is not used: fp16' in line for line in tensorrt.lines) == 1


def test_mixed_is_judged_as_fp16(tensorrt, tiny_card):
    card = tiny_card(changes={'check': {'tolerance': {'fp32': 0.001, 'fp16': 0.05}}})
    tensorrt.set(errors={'fp16': 0.2, 'mixed': 0.03})
    with tensorrt.open(card) as backend:
        assert backend.precision == 'mixed'


def test_asking_for_a_failing_fp16_is_an_error(tensorrt, tiny_card):
    tensorrt.set(errors={'fp16': 0.2})
    with pytest.raises(BackendError, match='fp16: self-check failed'):
        tensorrt.open(tiny_card(), 'fp16')
    assert tensorrt.gpu.live() == {}


@pytest.mark.parametrize('backend', ['tensorrt', 'auto'])
@pytest.mark.parametrize(('typed', 'version'), [(False, '8.6.1'), (True, '10.3.0')])
def test_mixed_can_be_asked_for(tensorrt, tiny_card, backend, typed, version):
    tensorrt.set(typed=typed, version=version, errors={'fp16': 0.2})
    with tensorrt.open(tiny_card(), 'mixed', backend) as opened:
        assert (opened.name, opened.precision, opened.refusals) == ('tensorrt', 'mixed', ())
    (engine,) = tensorrt.engines()
    assert engine.key.precision == 'mixed'


@pytest.mark.parametrize('half_file', [False, True])
def test_tensorrt_10_goes_from_fp16_to_mixed_by_its_flags(tensorrt, tiny_card, half_file):
    tensorrt.set(typed=True, version='10.3.0', errors={'fp16': 0.2})
    card = as_fp16(tiny_card()) if half_file else tiny_card()
    with tensorrt.open(card) as backend:
        assert backend.precision == 'mixed'
        (refusal,) = backend.refusals
    assert ('self-check failed' if half_file else 'no fp16 file') in refusal.reason


def test_typed_tensorrt_builds_fp16_from_the_fp16_file(tensorrt, tiny_card):
    tensorrt.set(typed=True, version='11.4.0')
    with tensorrt.open(as_fp16(tiny_card())) as backend:
        assert (backend.precision, backend.version) == ('fp16', '11.4.0')
    (engine,) = tensorrt.engines()
    assert engine.key.precision == 'fp16'


def test_typed_tensorrt_without_an_fp16_file_says_so_and_takes_fp32(tensorrt, tiny_card):
    tensorrt.set(typed=True, version='11.4.0')
    with tensorrt.open(tiny_card()) as backend:
        assert backend.precision == 'fp32'
        (refusal,) = backend.refusals
    assert 'no fp16 file' in refusal.reason
    assert 'depth-node export' in refusal.reason
    with pytest.raises(BackendError, match='mixed is for TensorRT 8'):
        tensorrt.open(tiny_card(), 'mixed')


def test_int8_needs_its_own_file(tensorrt, tiny_card):
    with pytest.raises(BackendError, match=r'no int8_trt file.*depth-node quantize'):
        tensorrt.open(tiny_card(int8_gain=0.0201), 'int8')


def test_bf16_is_not_for_tensorrt(tensorrt, tiny_card):
    with pytest.raises(BackendError, match="'bf16': known are fp32, fp16, mixed"):
        tensorrt.open(tiny_card(), 'bf16')


# --- the cache and the builder


def test_engine_is_built_once(tensorrt, tiny_card):
    card = tiny_card()
    for _ in range(3):
        tensorrt.open(card).close()
    assert tensorrt.builds() == 1
    (engine,) = tensorrt.engines()
    assert (engine.key.gpu_name, engine.key.sm, engine.key.precision) == ('Fake Orin', 87, 'fp16')
    assert engine.info['model'] == 'tiny'


def test_first_start_tells_that_it_builds(tensorrt, tiny_card):
    tensorrt.open(tiny_card()).close()
    assert any('building the fp16 engine of tiny for Fake Orin' in line
               for line in tensorrt.lines)
    assert any('built in' in line for line in tensorrt.lines)


def test_full_disk_is_told_at_every_start(tensorrt, tiny_card, monkeypatch):
    def full(*args):
        raise CacheError('No space left on device')

    monkeypatch.setattr(EngineCache, '_store', full)
    card = tiny_card()
    for starts in (1, 2):
        tensorrt.open(card).close()
        assert sum('is not kept, the next start will build it again: No space left on device'
                   in line for line in tensorrt.lines) == starts
    assert tensorrt.builds() == 2


def test_why_an_engine_on_disk_is_not_taken_is_told_before_the_build(tensorrt, tiny_card):
    card = tiny_card()
    tensorrt.open(card).close()
    tensorrt.set(version='8.5.2')
    tensorrt.lines.clear()
    tensorrt.open(card).close()
    reason, building = (
        next(number for number, line in enumerate(tensorrt.lines) if words in line)
        for words in ('for TensorRT 8.6.1, here TensorRT 8.5.2', 'building the'))
    assert reason < building
    (engine, _) = tensorrt.engines()
    engine.path.write_bytes(b'x' + engine.path.read_bytes()[1:])
    tensorrt.lines.clear()
    tensorrt.open(card).close()
    assert any('its SHA-256 is' in line for line in tensorrt.lines)


def test_build_tells_how_far_it_is(tensorrt, tiny_card, monkeypatch):
    monkeypatch.setattr(tensorrt_backend, '_SECONDS_PER_LINE', 0.0)
    tensorrt.open(tiny_card()).close()
    assert any('building, 0 s, 0 %: reading the graph' in line for line in tensorrt.lines)


def test_engine_comes_from_the_builders_own_process(tensorrt, tiny_card, monkeypatch):
    monkeypatch.setattr(tensorrt_backend, 'build_in_child', build_in_child)
    with tensorrt.open(tiny_card()) as backend:
        batch = picture()
        np.testing.assert_allclose(backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)
    assert list(engines_folder(tensorrt.cache).glob('tensorrt-8.6.1-sm87.timing'))


def test_other_tensorrt_builds_its_own_engine(tensorrt, tiny_card):
    card = tiny_card()
    tensorrt.open(card).close()
    tensorrt.set(version='8.5.2')
    tensorrt.open(card).close()
    assert tensorrt.builds() == 2
    assert len(tensorrt.engines()) == 2


def test_changed_plan_is_never_loaded(tensorrt, tiny_card):
    card = tiny_card()
    tensorrt.open(card).close()
    (engine,) = tensorrt.engines()
    plan = engine.path.read_bytes()
    engine.path.write_bytes(plan.replace(b'"gain": 0.0', b'"gain": 0.1'))
    with tensorrt.open(card) as backend:
        batch = picture()
        np.testing.assert_allclose(backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)
    assert tensorrt.builds() == 2
    assert engine.path.read_bytes() == plan


def test_plan_that_tensorrt_refuses_is_built_anew(tensorrt, tiny_card):
    card = tiny_card()
    tensorrt.open(card).close()
    tensorrt.set(driver=2)
    with tensorrt.open(card) as backend:
        assert self_check(backend).ok
    assert any('built with another driver' in line for line in tensorrt.lines)
    assert tensorrt.builds() == 2
    tensorrt.open(card).close()
    assert tensorrt.builds() == 2, 'the new plan was not kept'


def test_folder_that_cannot_be_written_costs_the_cache_alone(tensorrt, tiny_card):
    tensorrt.cache.mkdir()
    engines_folder(tensorrt.cache).write_text('a file where the folder should be')
    with tensorrt.open(tiny_card()) as backend:
        assert self_check(backend).ok
    assert any('is built and not kept' in line for line in tensorrt.lines)


def test_build_that_fails_is_a_refusal_with_tensorrts_reason(tensorrt, tiny_card):
    tensorrt.set(build_fails='Could not find any implementation for node Conv_7')
    with pytest.raises(BackendError, match='any implementation for node Conv_7'):
        tensorrt.open(tiny_card())
    assert tensorrt.gpu.live() == {}


def test_default_folder_is_the_users_cache(tensorrt, tiny_card, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
    open_backend(tiny_card(), 'tensorrt').close()
    assert list((tmp_path / 'home' / 'depth_node' / 'engines').glob('*.engine'))


# --- what does not fit, and what fails


@pytest.mark.parametrize(('settings', 'message'), [
    ({'half_output': True}, "output 'depth' is float16, float32 is expected"),
    ({'no_context': True}, 'no memory for the engine: out of memory'),
])
def test_engine_that_does_not_fit(tensorrt, tiny_card, settings, message):
    tensorrt.set(**settings)
    with pytest.raises(BackendError, match=message):
        tensorrt.open(tiny_card())
    assert tensorrt.gpu.live() == {}


def test_card_that_is_of_another_graph(tensorrt, tiny_card):
    card = tiny_card(changes={'output': {'name': 'disparity'}})
    with pytest.raises(BackendError, match="no output 'disparity'"):
        tensorrt.open(card)


def test_gpu_without_memory(tensorrt, tiny_card):
    tensorrt.gpu.device(memory=3000)
    with pytest.raises(BackendError, match='out of memory'):
        tensorrt.open(tiny_card())
    assert tensorrt.gpu.live() == {}


def test_every_call_that_can_fail_fails_cleanly_and_frees_everything(tensorrt, tiny_card):
    card = tiny_card()
    tensorrt.open(card).close()  # from here on the engine is in the cache
    batch = picture()
    reasons = []
    for call in range(1, 200):
        tensorrt.gpu.reset()
        tensorrt.gpu.fail_at(call, 999)
        try:
            with tensorrt.open(card, 'fp16') as backend:
                for _ in range(3):
                    np.testing.assert_allclose(
                        backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)
        except BackendError as error:
            reasons.append(str(error))
        done = tensorrt.gpu.calls() < call
        tensorrt.gpu.fail_at(0, 0)
        backend = None
        assert tensorrt.gpu.live() == {}, f'call {call}'
        assert tensorrt.gpu.bad_frees() == 0
        if done:
            break
    else:
        pytest.fail('it never went through')
    assert len(reasons) > 10
    assert all('999' in reason or 'CUDA fails' in reason for reason in reasons)


def test_error_that_ends_the_context_is_told_at_every_run_and_the_end_is_quiet(
    tensorrt, tiny_card
):
    backend = tensorrt.open(tiny_card())
    batch = picture()
    backend.run(batch)
    tensorrt.gpu.fail_at(2, 700)  # the wait after the launch
    for _ in range(3):
        with pytest.raises(BackendError, match=r'illegal memory access.*restart it'):
            backend.run(batch)
    backend.close()
    assert tensorrt.gpu.live() == {}


# --- the end


def test_close_twice_and_run_after_close(tensorrt, tiny_card):
    backend = tensorrt.open(tiny_card())
    depth = backend.run(picture())['depth'][0, 0]
    values = depth.copy()
    tensorrt.module.destroyed.clear()
    backend.close()
    backend.close()
    assert tensorrt.module.destroyed == ['context', 'engine', 'runtime']
    np.testing.assert_array_equal(depth, values)  # its memory is still there
    with pytest.raises(BackendError, match='closed'):
        backend.run(picture())
    del depth
    assert tensorrt.gpu.live() == {}


def test_forgotten_backend_frees_everything(tensorrt, tiny_card):
    backend = tensorrt.open(tiny_card())
    backend.run(picture())
    del backend
    assert tensorrt.gpu.live() == {}


def test_closing_waits_for_the_run_of_another_thread(tensorrt, tiny_card):
    backend = tensorrt.open(tiny_card())
    batch = picture()
    running, go_on, results = threading.Event(), threading.Event(), []
    execute = backend._execute

    def slow():
        running.set()
        assert go_on.wait(10)
        execute()

    backend._execute = slow
    runner = threading.Thread(target=lambda: results.append(backend.run(batch)['depth'].copy()))
    closer = threading.Thread(target=backend.close)
    runner.start()
    assert running.wait(10)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    go_on.set()
    for thread in (runner, closer):
        thread.join(10)
    np.testing.assert_allclose(results[0][0, 0], expected(batch), rtol=1e-5)
    with pytest.raises(BackendError, match='it is closed'):
        backend.run(batch)
    assert tensorrt.gpu.live() == {}


def test_run_that_begins_while_another_thread_closes(tensorrt, tiny_card):
    """Past the look of `run` at whether it is open, the closing comes first."""
    backend = tensorrt.open(tiny_card())
    backend.close()
    with pytest.raises(BackendError, match='it is closed'):
        backend._infer(picture())


FORGETFUL = """
import atexit, sys, pathlib
atexit.register(lambda: print(*sys.modules['tensorrt'].destroyed))  # the first one runs last
from depth_node.backends import cuda, open_backend
from depth_node.model_card import ModelCard
import numpy as np
card, library, cache = ModelCard.load(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
cuda._libraries = lambda: iter([library])
backend = open_backend(card, 'tensorrt', cache_dir=cache)
batch = np.full((1, 24, 40, 3), 100, np.uint8)
for _ in range(3):
    depth = backend.run(batch)['depth']
print(float(depth.mean()))
sys.keep = backend, depth
"""


@pytest.mark.parametrize('ending', ['', 'raise SystemExit(0)'])
def test_process_that_exits_with_an_open_backend(tensorrt, tiny_card, tmp_path, ending):
    report = tmp_path / 'report'
    result = subprocess.run(
        [sys.executable, '-c', FORGETFUL + ending, str(tiny_card().path), tensorrt.gpu.path,
         str(tensorrt.cache)],
        capture_output=True, text=True, env={
            **os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{FAKE}',
            'FAKE_CUDART_REPORT': str(report)})
    assert (result.returncode, result.stderr) == (0, '')
    depth, destroyed = result.stdout.splitlines()
    assert float(depth) == pytest.approx(4.5)
    assert destroyed == 'context engine runtime'
    device, _, stream, event, graph, exec_, bad = map(int, report.read_text().split())
    assert (device, stream, event, graph, exec_, bad) == (0, 0, 0, 0, 0, 0)


# --- the chain


def test_auto_takes_tensorrt_where_it_is(tensorrt, tiny_card):
    with tensorrt.open(tiny_card(int8_gain=0.0201), backend='auto') as backend:
        assert (backend.name, backend.precision) == ('tensorrt', 'fp16')
        assert backend.refusals == ()


def test_auto_goes_on_to_the_cpu_where_tensorrt_fails(tensorrt, tiny_card):
    pytest.importorskip('openvino')
    tensorrt.set(build_fails='no such layer')
    with tensorrt.open(tiny_card(), backend='auto') as backend:
        assert backend.name == 'openvino'
        reasons = [reason for name, reason in backend.refusals if name == 'tensorrt']
    assert len(reasons) == 3
    assert all('no such layer' in reason for reason in reasons)


@pytest.mark.parametrize(('change', 'parts'), [
    ('no driver', ['no NVIDIA driver answers']),
    ('neither', ['no NVIDIA driver answers', 'TensorRT is not installed either']),
    ('not installed', ['not installed', 'pip install tensorrt', 'nvidia-jetpack']),
    ('broken', ['cannot be imported', 'libnvinfer.so.10']),
    ('old', ['8.4.1 is too old', 'JetPack 5.1']),
])
def test_probe_says_what_is_missing(tensorrt, monkeypatch, tmp_path, change, parts):
    if change in ('no driver', 'neither'):
        tensorrt.gpu.device(driver=0)
    if change in ('not installed', 'neither'):
        monkeypatch.setattr(sys, 'path', [entry for entry in sys.path if entry != str(FAKE)])
        monkeypatch.delitem(sys.modules, 'tensorrt')
        if importlib.util.find_spec('tensorrt') or importlib.util.find_spec('tensorrt_rtx'):
            pytest.skip('a real TensorRT is installed here')
    if change == 'broken':
        (tmp_path / 'tensorrt.py').write_text(
            'raise ImportError("libnvinfer.so.10: cannot open shared object file")')
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, 'tensorrt')
    if change == 'old':
        tensorrt.set(version='8.4.1')
        monkeypatch.delattr(tensorrt.module.ICudaEngine, 'num_io_tensors')
    found = backends.availability('tensorrt')
    assert found.version is None
    for part in parts:
        assert part in found.reason


def test_probe_does_not_import_tensorrt_without_a_driver(tensorrt, monkeypatch):
    tensorrt.gpu.device(driver=0)
    monkeypatch.delitem(sys.modules, 'tensorrt')
    assert backends.availability('tensorrt').version is None
    assert 'tensorrt' not in sys.modules


def test_runnable_follows_the_files_of_the_card(tiny_card):
    card = as_fp16(tiny_card(int8_gain=0.0201))
    assert runnable(card, 'tensorrt') == ('fp32', 'fp16')
    assert runnable(card, 'onnxruntime-cuda') == ('fp32', 'fp16')
    assert runnable(card, 'openvino') == runnable(card, 'onnxruntime') == ('fp32', 'int8')

"""Both CPU runtimes on tiny networks with a closed form, and every way to be refused."""

from __future__ import annotations

from dataclasses import replace
import os
from pathlib import Path
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

from depth_node import backends
from depth_node.backends import BackendError, cuda, open_backend, self_check
from depth_node.backends._base import _quota, default_threads
from depth_node.model_card import CardError, check_input
import numpy as np
import pytest

CPU = ['openvino', 'onnxruntime']
GPU = ('tensorrt', 'onnxruntime-tensorrt', 'onnxruntime-cuda')
SIZE_HW = (24, 40)


@pytest.fixture(params=CPU)
def name(request):
    pytest.importorskip(request.param)
    return request.param


def picture(size_hw=SIZE_HW, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (1, *size_hw, 3), np.uint8)


def expected(batch, gain=0.02, offset=0.5):
    return gain * (batch[0].astype(np.float64) @ [1, 2, 3]) / 3 + offset


def test_computes_the_closed_form(tiny_card, name):
    with open_backend(tiny_card(), name) as backend:
        assert (backend.name, backend.precision) == (name, 'fp32')
        for seed in range(3):
            batch = picture(seed=seed)
            got = backend.run(batch)
            assert list(got) == ['depth']
            assert got['depth'].shape == (1, 1, *SIZE_HW)
            assert got['depth'].dtype == np.float32
            np.testing.assert_allclose(got['depth'][0, 0], expected(batch), rtol=1e-5)


def test_same_buffer_with_new_content_gives_the_new_result(tiny_card, name):
    buffer = np.empty((*SIZE_HW, 3), np.uint8)
    with open_backend(tiny_card(), name) as backend:
        for level in (0, 100, 255):
            buffer[:] = level
            # [None] makes a new array object on the same memory, as the pipeline does
            got = backend.run(buffer[None])['depth']
            np.testing.assert_allclose(got, 0.02 * 2 * level + 0.5, rtol=1e-5)


def test_batches_that_lie_elsewhere_each_count(tiny_card, name):
    with open_backend(tiny_card(), name) as backend:
        for seed in (3, 4, 3):
            batch = picture((SIZE_HW[0], 2 * SIZE_HW[1]), seed)[:, :, ::2]  # not contiguous
            np.testing.assert_allclose(
                backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)


@pytest.mark.parametrize('colour', ['rgb', 'bgr'])
def test_float_layout_with_mean_and_std_passes_the_self_check(tiny_card, name, colour):
    card = tiny_card(layout='float32_nchw', colour=colour)
    with open_backend(card, name) as backend:
        assert self_check(backend).ok
        batch = np.random.default_rng(0).normal(size=(1, 3, *SIZE_HW)).astype(np.float32)
        got = backend.run(batch)['depth'][0, 0]
        wanted = 0.02 / 3 * np.einsum('chw,c->hw', batch[0].astype(np.float64), [1, 2, 3]) + 0.5
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_dynamic_network_follows_the_input_size(tiny_card, name):
    with open_backend(tiny_card(dynamic=True), name) as backend:
        for size_hw in [(16, 32), (24, 40), (64, 16), (16, 32)]:
            batch = picture(size_hw)
            got = backend.run(batch)['depth']
            assert got.shape == (1, 1, *size_hw)
            np.testing.assert_allclose(got[0, 0], expected(batch), rtol=1e-5)
        with pytest.raises(BackendError, match='multiples of 8'):
            backend.run(picture((20, 32)))


def test_a_few_input_sizes_are_prepared_once_each(tiny_card, name, monkeypatch):
    sizes = [(16, 32), (24, 40), (64, 16), (32, 32)]
    method = {'openvino': '_compile', 'onnxruntime': '_first_of_its_shape'}[name]
    with open_backend(tiny_card(dynamic=True), name) as backend:
        prepared = []
        prepare = getattr(backend, method)
        monkeypatch.setattr(backend, method, lambda first: prepared.append(
            getattr(first, 'shape', first)) or prepare(first))
        for round_ in range(3):
            for number, size_hw in enumerate(sizes):
                batch = picture(size_hw, seed=10 * round_ + number)
                np.testing.assert_allclose(
                    backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)
        assert sorted(set(prepared)) == sorted(prepared)  # at most once each
        prepared.clear()
        backend.run(picture((40, 40)))  # one more: what was used longest ago goes
        backend.run(picture(sizes[1]))
        backend.run(picture(sizes[0]))
        assert prepared == [(1, 40, 40, 3), (1, *sizes[0], 3)]


def test_confidence_comes_by_its_name(tiny_card, name):
    card = tiny_card(outputs={'confidence': 'confidence', 'depth': 'depth'})
    with open_backend(card, name) as backend:
        batch = picture()
        got = backend.run(batch)
        assert list(got) == ['depth', 'confidence']
        np.testing.assert_allclose(
            got['confidence'][0, 0], 1 / (1 + np.exp(-expected(batch))), rtol=1e-4)


@pytest.mark.parametrize(('batch', 'message'), [
    (np.zeros((1, 24, 40, 3), np.float32), 'uint8'),
    (np.zeros((1, 40, 24, 3), np.uint8), r'\(1, 24, 40, 3\)'),
    (np.zeros((2, 24, 40, 3), np.uint8), r'\(1, 24, 40, 3\)'),
    (np.zeros((24, 40, 3), np.uint8), r'\(1, 24, 40, 3\)'),
    (np.zeros((0,), np.uint8), r'\(1, 24, 40, 3\)'),
])
def test_wrong_batches_are_refused_and_the_backend_goes_on(tiny_card, name, batch, message):
    with open_backend(tiny_card(), name) as backend:
        with pytest.raises(BackendError, match=message):
            backend.run(batch)
        good = picture()
        np.testing.assert_allclose(backend.run(good)['depth'][0, 0], expected(good), rtol=1e-5)


def test_close_twice_and_run_after_close(tiny_card, name):
    backend = open_backend(tiny_card(), name)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match='closed'):
        backend.run(picture())


def test_gil_is_free_while_the_network_runs(tiny_card, name):
    size_hw = (96, 128)
    card = tiny_card(size_hw=size_hw, work=3)
    with open_backend(card, name, threads=1) as backend:
        batch = picture(size_hw)
        done = threading.Event()

        def work():
            start = time.perf_counter()
            while time.perf_counter() - start < 0.5:
                backend.run(batch)
            done.set()

        start = time.perf_counter()
        backend.run(batch)
        one_run_s = time.perf_counter() - start
        worker = threading.Thread(target=work)
        gaps = []
        worker.start()
        while not done.is_set():
            before = time.perf_counter()
            time.sleep(0.001)
            gaps.append(time.perf_counter() - before)
        worker.join()
    assert one_run_s > 0.02, 'the network is too small for this test to mean anything'
    # with the GIL held, no sleep could end before the run that it began in
    assert np.median(gaps) < one_run_s / 3


# --- which backend, which precision


def test_auto_takes_openvino_and_tells_why_no_gpu(tiny_card):
    pytest.importorskip('openvino')
    ort = pytest.importorskip('onnxruntime')
    if 'CUDAExecutionProvider' in ort.get_available_providers() or not cuda.why_not():
        pytest.skip('this machine has the CUDA provider, or a GPU')
    lines = []
    with open_backend(tiny_card(), log=lines.append) as backend:
        assert backend.name == 'openvino'
        assert tuple(refusal.backend for refusal in backend.refusals) == GPU
    assert len(lines) == 3
    for line, name, reason in zip(
            lines, GPU, (cuda.why_not(), 'without TensorRT', 'without CUDA'), strict=True):
        assert name in line
        assert reason in line


def test_auto_precision_is_int8_where_the_card_has_it(tiny_card, name):
    card = tiny_card(int8_gain=0.0201)
    with open_backend(card, name) as backend:
        assert backend.precision == 'int8'
        batch = picture()
        np.testing.assert_allclose(
            backend.run(batch)['depth'][0, 0], expected(batch, 0.0201), rtol=1e-5)
    with open_backend(card, name, 'fp32') as backend:
        assert backend.precision == 'fp32'
        np.testing.assert_allclose(backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)


def test_int8_that_fails_its_check_falls_back_to_fp32_and_says_so(tiny_card, name):
    lines = []
    with open_backend(tiny_card(int8_gain=0.03), name, log=lines.append) as backend:
        assert backend.precision == 'fp32'
        (refusal,) = backend.refusals
    assert 'int8: self-check failed' in refusal.reason
    assert '% off' in refusal.reason
    assert len(lines) == 1


def test_asking_for_a_failing_int8_is_an_error(tiny_card, name):
    with pytest.raises(BackendError, match='self-check failed'):
        open_backend(tiny_card(int8_gain=0.03), name, 'int8')


def test_fp32_is_really_fp32_where_bf16_is_the_runtimes_default(tiny_card):
    """OpenVINO computes in bf16 unless told otherwise: 8 bits of mantissa would show here."""
    pytest.importorskip('openvino')
    with open_backend(tiny_card(size_hw=(96, 128), work=1), 'openvino', 'fp32') as backend:
        batch = picture((96, 128))
        error = np.abs(backend.run(batch)['depth'][0, 0] / expected(batch) - 1)
    assert error.max() < 1e-5


def test_bf16_is_for_openvino_on_cpus_that_have_it(tiny_card):
    ov = pytest.importorskip('openvino')
    card = tiny_card()
    if 'BF16' in ov.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        with open_backend(card, 'openvino', 'bf16') as backend:
            assert backend.precision == 'bf16'
            batch = picture()
            np.testing.assert_allclose(
                backend.run(batch)['depth'][0, 0], expected(batch), rtol=0.02)
    else:
        with pytest.raises(BackendError, match='no bf16'):
            open_backend(card, 'openvino', 'bf16')
    with pytest.raises(BackendError, match='bf16 is not for onnxruntime'):
        open_backend(card, 'onnxruntime', 'bf16')


@pytest.mark.parametrize(('options', 'message'), [
    ({'backend': 'tensorflow'}, 'known are auto, tensorrt, onnxruntime-tensorrt, '
                                'onnxruntime-cuda, openvino, onnxruntime'),
    ({'precision': 'fp8'}, 'known are auto, fp32, fp16, mixed, bf16, int8'),
    ({'threads': 0}, '1 or more'),
])
def test_unknown_options_are_refused(tiny_card, options, message):
    with pytest.raises(BackendError, match=message):
        open_backend(tiny_card(), **options)


BLOCKED = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[2].split(',')))  # importing these fails
from depth_node.backends import BackendError, open_backend
from depth_node.model_card import ModelCard
try:
    backend = open_backend(ModelCard.load(sys.argv[1]), log=lambda line: print('LOG', line))
except BackendError as error:
    print('ERROR', error)
else:
    print('USED', backend.name)
"""


def run_blocked(card, blocked):
    result = subprocess.run(
        [sys.executable, '-c', BLOCKED, str(card.path), blocked], capture_output=True, text=True,
        check=True, env={**os.environ, 'PYTHONPATH': str(Path(backends.__file__).parents[2])})
    return result.stdout


def test_a_runtime_that_is_not_installed_is_passed_over(tiny_card):
    pytest.importorskip('onnxruntime')
    out = run_blocked(tiny_card(), 'openvino')
    assert 'LOG backend openvino is not used: not installed' in out
    assert 'USED onnxruntime' in out


def test_no_runtime_at_all_names_them_all_and_the_cure(tiny_card):
    out = run_blocked(tiny_card(), 'openvino,onnxruntime')
    assert 'ERROR no backend runs model' in out
    assert out.count('LOG') == len(backends.AUTO_ORDER)
    assert "pip install '.[cpu]' in the clone" in out


def test_opening_imports_the_chosen_runtime_only(tiny_card):
    pytest.importorskip('openvino')
    code = ('import sys; from depth_node.backends import open_backend; '
            'from depth_node.model_card import ModelCard; '
            'open_backend(ModelCard.load(sys.argv[1]), "openvino"); '
            'print({"torch", "onnx", "onnxruntime", "rclpy"} & set(sys.modules))')
    result = subprocess.run(
        [sys.executable, '-c', code, str(tiny_card().path)], capture_output=True, text=True,
        check=True, env={**os.environ, 'PYTHONPATH': str(Path(backends.__file__).parents[2])})
    assert result.stdout.strip() == 'set()'


# --- cards and graphs that do not belong together


def test_missing_file(tiny_card, name):
    card = tiny_card()
    card.precisions['fp32'].path.unlink()
    with pytest.raises(CardError, match=r'tiny\.onnx.*cannot be read'):
        open_backend(card, name)


def test_wrong_hash(tiny_card, name):
    card = tiny_card()
    with card.precisions['fp32'].path.open('ab') as stream:
        stream.write(b'x')
    with pytest.raises(CardError, match='SHA-256'):
        open_backend(card, name)


def test_precision_without_a_file(tiny_card, name):
    with pytest.raises(CardError, match='no int8 file'):
        open_backend(tiny_card(), name, 'int8')


def test_file_that_is_no_onnx(tiny_card, name):
    from depth_node.model_card import FileSpec, file_sha256
    card = tiny_card()
    path = card.precisions['fp32'].path
    path.write_bytes(b'this is not a network')
    card.precisions['fp32'] = FileSpec(path, file_sha256(path))
    with pytest.raises(BackendError, match=r'cannot open tiny\.onnx'):
        open_backend(card, name)


@pytest.mark.parametrize(('options', 'message'), [
    ({'changes': {'output': {'name': 'disparity'}}}, "no output 'disparity'.*it has .*depth"),
    ({'changes': {'output': {'confidence': 'sure'}}}, "no output 'sure'"),
    ({'changes': {'input': {'name': 'picture'}}}, "inputs image, the card says 'picture'"),
    ({'changes': {'input': {'size_hw': [40, 24]}, 'check': {'size_hw': [40, 24]}}},
     r'shape \[1, 24, 40, 3\] in the graph, the card says \[1, 40, 24, 3\]'),
    ({'changes': {'input': {'layout': 'float32_nchw', 'mean': [0, 0, 0], 'std': [1, 1, 1]}}},
     'uint8 in the graph, the card says float32_nchw'),
    ({'outputs': {'depth': 'flat'}}, '1x960 for an input of 24x40: the aspect differs'),
    ({'poison': 0.0}, '960 of 960 values of depth are not finite'),
    ({'poison': 1.0}, 'not finite'),
    ({'poison': 1.0, 'check': False}, 'not finite'),
    ({'changes': {'check': {'mean': 3.0}}}, r'mean is [\d.]+, the card says 3.*% off'),
    ({'changes': {'check': {'std': 3.0}}}, 'std is'),
    ({'changes': {'check': {'percentiles': {10: 0.1}}}}, 'p10 is'),
    ({'colour': 'bgr', 'changes': {'input': {'colour': 'rgb'}}}, '% off'),
])
def test_a_lying_card_is_refused_with_what_differs(tiny_card, name, options, message):
    with pytest.raises(BackendError, match=message):
        open_backend(tiny_card(**options), name)


def test_dynamic_card_over_a_fixed_graph(tiny_card, name):
    card = tiny_card(changes={'input': {}})
    raw = card.to_dict()
    del raw['input']['size_hw']
    raw['input'].update(multiple_of=8, min_hw=[16, 16], max_hw=[80, 80])
    with pytest.raises(BackendError, match=r"shape \[1, 24, 40, 3\].*\[1, '\?', '\?', 3\]"):
        open_backend(type(card).from_dict(raw, card.path), name)


def test_auto_with_a_lying_card_names_every_backend(tiny_card):
    pytest.importorskip('openvino')
    pytest.importorskip('onnxruntime')
    with pytest.raises(BackendError) as caught:
        open_backend(tiny_card(changes={'check': {'mean': 3.0}}))
    for backend in backends.AUTO_ORDER:
        assert f'{backend}: ' in str(caught.value)


def test_self_check_without_statistics_says_what_it_did(tiny_card, name):
    with open_backend(tiny_card(check=False), name) as backend:
        result = self_check(backend)
    assert result.ok
    assert 'no reference statistics' in result.detail


def test_int8_of_tensorrt_is_judged_by_its_own_tolerance(tiny_card):
    """It runs another file than the CPU's INT8, with another deviation."""
    pytest.importorskip('onnxruntime')
    honest = tiny_card()
    off = replace(honest.check, mean=honest.check.mean * 1.02,
                  tolerance={'fp32': 0.002, 'int8': 0.01, 'int8_trt': 0.5})
    with open_backend(honest, 'onnxruntime') as backend:
        judged = SimpleNamespace(name='tensorrt', precision='int8', run=backend.run,
                                 card=replace(honest, check=off))
        assert self_check(judged).ok
        judged.name = 'onnxruntime'
        assert not self_check(judged).ok


def test_self_check_catches_a_backend_that_drifts(tiny_card, name):
    """The check is about this moment: the same open backend, made to compute something else."""
    with open_backend(tiny_card(), name) as backend:
        assert self_check(backend).ok
        run = backend.run
        backend.run = lambda batch: {k: v * 1.01 for k, v in run(batch).items()}
        assert not self_check(backend).ok


def test_model_cache_is_written_where_it_is_told(tiny_card, tmp_path):
    pytest.importorskip('openvino')
    cache = tmp_path / 'cache'
    card = tiny_card()
    with open_backend(card, 'openvino', cache_dir=cache):
        pass
    assert any(cache.iterdir())
    batch = picture()
    with open_backend(card, 'openvino', cache_dir=cache) as backend:  # from the cache
        np.testing.assert_allclose(backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)


@pytest.mark.parametrize('garbage', [b'', b'garbage' * 100, None])
def test_damaged_model_cache_is_no_obstacle(tiny_card, tmp_path, garbage):
    pytest.importorskip('openvino')
    cache = tmp_path / 'cache'
    card = tiny_card()
    open_backend(card, 'openvino', cache_dir=cache).close()
    for path in cache.rglob('*.blob'):
        blob = path.read_bytes()
        path.write_bytes(blob[:len(blob) // 2] if garbage is None else garbage)
    batch = picture()
    with open_backend(card, 'openvino', cache_dir=cache) as backend:
        np.testing.assert_allclose(backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)


def test_model_cache_that_cannot_be_written(tiny_card, tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(BackendError, match=r'cache_dir .*choose a folder'):
        open_backend(tiny_card(), cache_dir=tmp_path / 'file' / 'cache')


class Session:
    """ONNX Runtime's session on the CPU, which says that it runs elsewhere."""

    asked = ()

    def __init__(self, path, options=None, providers=None):
        import onnxruntime

        Session.asked = providers
        first = providers[0] if isinstance(providers[0], str) else providers[0][0]
        self._first = first if self.starts else 'CPUExecutionProvider'
        self._real = onnxruntime.capi.onnxruntime_inference_collection.InferenceSession(
            path, options, providers=['CPUExecutionProvider'])

    def get_providers(self):
        return [self._first]

    def __getattr__(self, name):
        return getattr(self._real, name)


@pytest.fixture
def gpu_providers(monkeypatch):
    """As with onnxruntime-gpu and a driver; returns a function that says whether they start."""
    ort = pytest.importorskip('onnxruntime')
    providers = [name for name in ort.get_available_providers() if name.startswith('CPU')]
    monkeypatch.setattr(ort, 'get_available_providers', lambda: [
        'TensorrtExecutionProvider', 'CUDAExecutionProvider', *providers])

    def make(*, driver=True, starts=True):
        monkeypatch.setattr(cuda, 'why_not', lambda: '' if driver else 'no driver answers')
        monkeypatch.setattr(Session, 'starts', starts, raising=False)
        monkeypatch.setattr(ort, 'InferenceSession', Session)
    return make


def test_gpu_provider_without_a_driver_is_passed_over(tiny_card, gpu_providers):
    gpu_providers(driver=False)
    with open_backend(tiny_card()) as backend:
        assert backend.name in CPU
        reasons = dict(backend.refusals)
    assert set(GPU) <= set(reasons)
    assert all('no driver answers' in reasons[name] for name in GPU[1:])


@pytest.mark.parametrize(('name', 'what'), [
    ('onnxruntime-cuda', 'CUDAExecutionProvider did not start.*cuDNN'),
    ('onnxruntime-tensorrt', 'TensorrtExecutionProvider did not start.*libnvinfer')])
def test_gpu_provider_that_does_not_start_is_refused(tiny_card, gpu_providers, name, what):
    gpu_providers(starts=False)
    with pytest.raises(BackendError, match=f'{what}.*fell back to the CPU'):
        open_backend(tiny_card(), name)


def test_tensorrt_provider_builds_fp16_into_the_cache_and_has_cuda_beside_it(
    tiny_card, gpu_providers, tmp_path
):
    gpu_providers()
    lines = []
    with open_backend(tiny_card(), 'onnxruntime-tensorrt', cache_dir=tmp_path / 'cache',
                      log=lines.append) as backend:
        assert (backend.precision, backend.device, backend.threads) == ('fp16', 'CUDA:0', 0)
        batch = picture()
        np.testing.assert_allclose(backend.run(batch)['depth'][0, 0], expected(batch), rtol=1e-5)
    (name, options), second = Session.asked
    assert (name, second) == ('TensorrtExecutionProvider', 'CUDAExecutionProvider')
    assert options['trt_fp16_enable'] == '1'
    assert options['trt_engine_cache_path'].startswith(str(tmp_path / 'cache'))
    assert any('takes minutes' in line for line in lines)


@pytest.mark.parametrize(('gain', 'precision'), [(0.0201, 'fp16'), (0.03, 'fp32')])
def test_cuda_provider_takes_the_fp16_file_if_it_passes(
    tiny_card, gpu_providers, gain, precision
):
    gpu_providers()
    card = tiny_card(int8_gain=gain)
    card.precisions['fp16'] = card.precisions.pop('int8')  # by name only: the choice counts here
    with open_backend(card, 'onnxruntime-cuda') as backend:
        assert backend.precision == precision
        assert Session.asked == ['CUDAExecutionProvider']


def test_auto_with_fp16_passes_over_what_has_no_such_file(tiny_card):
    pytest.importorskip('openvino')
    if not cuda.why_not():
        pytest.skip('this machine has a GPU')
    with pytest.raises(BackendError, match="openvino: fp16: model 'tiny' has no fp16 file"):
        open_backend(tiny_card(), precision='fp16')
    with pytest.raises(BackendError, match='openvino: mixed: precision mixed is not for OpenVINO'):
        open_backend(tiny_card(), precision='mixed')


def test_a_telling_line_of_openvinos_error_is_shown(tiny_card):
    from depth_node.model_card import FileSpec, file_sha256
    pytest.importorskip('openvino')
    card = tiny_card()
    path = card.precisions['fp32'].path
    path.write_bytes(b'this is not a network')
    card.precisions['fp32'] = FileSpec(path, file_sha256(path))
    with pytest.raises(BackendError, match='Unable to read the model'):
        open_backend(card, 'openvino')


def test_signature_of_a_graph(tiny_card, name, monkeypatch):
    monkeypatch.setattr(backends, 'AUTO_ORDER', ('onnxruntime-cuda', name))
    path = tiny_card(dynamic=True, identity=False).precisions['fp32'].path
    assert backends.signature(path) == (
        {'image': ('uint8', [1, None, None, 3])}, {'depth': ('float32', [1, 1, None, None])})
    path.write_bytes(b'no graph')
    with pytest.raises(BackendError, match=f'cannot be read as an ONNX graph; {name}: '):
        backends.signature(path)


def test_availability_of_every_backend():
    for backend in backends.AUTO_ORDER:
        found = backends.availability(backend)
        assert found.backend == backend
        assert (found.version is None) == bool(found.reason)


# --- threads


def test_default_threads_are_within_what_this_process_may_use():
    assert 1 <= default_threads() <= min(4, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(('text', 'cpus'), [
    ('200000 100000', 2), ('150000 100000', 2), ('10000 100000', 1), ('max 100000', 4),
    ('nonsense', 4), ('', 4)])
def test_container_quota_limits_the_threads(tmp_path, text, cpus):
    path = tmp_path / 'cpu.max'
    path.write_text(text)
    assert _quota(path) == cpus


def test_reference_picture_is_what_the_card_was_made_with(tiny_card):
    """Guards the fixture: the statistics come from the closed form, not from a runtime."""
    card = tiny_card()
    batch = check_input(card.check.seed, SIZE_HW)
    assert card.check.mean == pytest.approx(expected(batch).mean())

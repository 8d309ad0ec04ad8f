"""Users' weights files: what loads, what is refused, and what the refusal says."""

from __future__ import annotations

import sys

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks.encoders import build_encoder, load_encoder_weights  # noqa: E402
from hypothesis import given, settings, strategies  # noqa: E402


def random_state(name):
    torch.manual_seed(7)
    state = build_encoder(name).state_dict()
    return {
        key: torch.rand_like(value) if value.is_floating_point() else value + 5
        for key, value in state.items()
    }


CLASSIFIERS = {
    'resnet18': {'fc.weight': (1000, 512), 'fc.bias': (1000,)},
    'densenet121': {'classifier.weight': (1000, 1024), 'classifier.bias': (1000,)},
    'mobilenet_v1': {'fc.weight': (1000, 1024), 'fc.bias': (1000,)},
    'efficientnet_lite1': {'_conv_head.weight': (1280, 320, 1, 1), '_bn1.weight': (1280,),
                           '_fc.bias': (1000,)},
}  # fmt: skip


def same(encoder, state):
    found = encoder.state_dict()
    return all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize('name', sorted(CLASSIFIERS))
def test_a_classifiers_file_loads_without_its_classifier(name, tmp_path):
    state = random_state(name)
    whole = {**state, **{k: torch.zeros(shape) for k, shape in CLASSIFIERS[name].items()}}
    path = tmp_path / 'weights.pth'
    torch.save(whole, path)
    assert same(build_encoder(name, weights=path), state)


def test_vgg_file_loads_without_its_classifier(tmp_path):
    state = random_state('vgg16')
    path = tmp_path / 'vgg16.pt'
    torch.save({**state, 'classifier.6.bias': torch.zeros(1000)}, path)
    assert same(build_encoder('vgg16', weights=str(path)), state)


@pytest.mark.parametrize(
    'prefix', ['module.', 'encoder.', 'module.encoder.', 'network.encoder.', 'encoder.module.']
)
def test_prefixes_of_wrappers_are_dropped(prefix, tmp_path):
    state = random_state('resnet18')
    whole = {f'{prefix}{key}': value for key, value in state.items()}
    if 'encoder.' in prefix:  # a whole network: the rest is not the encoder's
        whole[prefix.replace('encoder.', 'decoder.') + 'weight'] = torch.zeros(3)
    path = tmp_path / 'last.ckpt'
    torch.save({'state_dict': whole, 'epoch': 3}, path)
    assert same(build_encoder('resnet18', weights=path), state)


def test_first_release_of_torchvisions_densenet_loads(tmp_path):
    """It wrote `denselayer1.norm.1.weight` for `denselayer1.norm1.weight`."""
    state = random_state('densenet121')
    old = {}
    for key, value in state.items():
        for part in ('norm', 'conv'):
            for number in '12':
                if 'denselayer' in key:
                    key = key.replace(f'.{part}{number}.', f'.{part}.{number}.')
        old[key] = value
    assert 'features.denseblock2.denselayer12.conv.2.weight' in old
    assert 'features.norm0.weight' in old
    path = tmp_path / 'densenet121.pth'
    torch.save(old, path)
    assert same(build_encoder('densenet121', weights=path), state)


def test_files_without_batch_counters_load(tmp_path):
    state = {k: v for k, v in random_state('resnet18').items() if 'num_batches' not in k}
    path = tmp_path / 'old.pth'
    torch.save(state, path)
    assert same(build_encoder('resnet18', weights=path), state)


def test_half_precision_file_becomes_float32(tmp_path):
    state = random_state('mobilenet_v1')
    path = tmp_path / 'half.pth'
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    encoder = build_encoder('mobilenet_v1', weights=path)
    weight = encoder.model[0][0].weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.data, state['model.0.0.weight'], atol=1e-3, rtol=1e-3)


def test_safetensors_file_loads(tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    state = random_state('resnet18')
    path = tmp_path / 'resnet18.safetensors'
    save_file({**state, 'fc.weight': torch.zeros(1000, 512)}, str(path))
    assert same(build_encoder('resnet18', weights=path), state)


def test_missing_safetensors_package_is_named(tmp_path, monkeypatch):
    path = tmp_path / 'resnet18.safetensors'
    path.write_bytes(b'')
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(ValueError, match='needs the package safetensors'):
        build_encoder('resnet18', weights=path)


def test_mismatch_lists_names_and_shapes(tmp_path):
    state = random_state('resnet18')
    state['conv1.weight'] = torch.zeros(64, 4, 7, 7)
    state['layer9.weight'] = torch.zeros(2)
    for key in ('bn1.bias', 'layer1.0.conv1.weight', 'layer2.0.bn1.bias', 'layer4.1.bn2.weight'):
        del state[key]
    path = tmp_path / 'other.pth'
    torch.save(state, path)
    with pytest.raises(ValueError, match='not ResNet-18 weights') as caught:
        build_encoder('resnet18', weights=path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert '4 missing: bn1.bias; layer1.0.conv1.weight; layer2.0.bn1.bias; ...' in text
    assert '1 unexpected: layer9.weight.' in text
    assert '1 of another shape: conv1.weight (64, 4, 7, 7), expected (64, 3, 7, 7)' in text
    assert "torchvision's resnet18" in text


@pytest.mark.parametrize(
    ('wanted', 'given'), [('resnet18', 'resnet34'), ('resnet34', 'resnet18'),
                          ('densenet169', 'densenet121'), ('vgg16', 'vgg16_bn'),
                          ('efficientnet_lite0', 'efficientnet_lite1')],
)  # fmt: skip
def test_a_siblings_file_is_refused_and_changes_nothing(wanted, given, tmp_path):
    path = tmp_path / f'{given}.pth'
    torch.save(build_encoder(given).state_dict(), path)
    encoder = build_encoder(wanted)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=f'not {encoder.title} weights'):
        load_encoder_weights(encoder, path)
    assert same(encoder, before)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = random_state('resnet18')
    state['layer3.0.conv1.weight'][3, 2, 1, 0] = float('nan')
    path = tmp_path / 'nan.pth'
    torch.save(state, path)
    with pytest.raises(ValueError, match=r'nan\.pth: layer3\.0\.conv1\.weight has values'):
        build_encoder('resnet18', weights=path)


def test_what_is_no_weights_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'gone\.pth: no such weights file'):
        build_encoder('resnet18', weights=tmp_path / 'gone.pth')
    onnx = tmp_path / 'net.onnx'
    onnx.write_bytes(b'x')
    with pytest.raises(ValueError, match=r"type '\.onnx'; expected one of"):
        build_encoder('resnet18', weights=onnx)
    listed = tmp_path / 'list.pt'
    torch.save([torch.zeros(3)], listed)
    with pytest.raises(ValueError, match='holds list, expected tensors by name'):
        build_encoder('resnet18', weights=listed)
    empty = tmp_path / 'empty.pt'
    torch.save({'epoch': 3, 'seed': 1}, empty)
    with pytest.raises(ValueError, match=r"no tensors by name in it, but \['epoch', 'seed'\]"):
        build_encoder('resnet18', weights=empty)


class Payload:
    def __reduce__(self):
        return (exec, ('raise SystemExit(3)',))


def test_code_in_a_pickle_is_not_run(tmp_path):
    path = tmp_path / 'evil.pth'
    torch.save({'conv1.weight': Payload()}, path)
    with pytest.raises(ValueError, match=r'evil\.pth: cannot be read as weights'):
        build_encoder('resnet18', weights=path)


@pytest.fixture(scope='module')
def real_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'small.pth'
    torch.save({'conv1.weight': torch.rand(4, 3, 2, 2), 'bn1.bias': torch.rand(4)}, path)
    return path


@settings(max_examples=40, deadline=None)
@given(
    cut=strategies.floats(0, 1),
    junk=strategies.binary(max_size=60),
    suffix=strategies.sampled_from(['.pth', '.safetensors']),
)
def test_hostile_files_give_nothing_but_a_reason(real_file, cut, junk, suffix):
    content = real_file.read_bytes()
    path = real_file.with_name(f'hostile{suffix}')
    path.write_bytes(content[: int(cut * len(content))] + junk)
    encoder = build_encoder('mobilenet_v1')
    with pytest.raises(ValueError, match=r'^.*hostile\.'):
        load_encoder_weights(encoder, path)

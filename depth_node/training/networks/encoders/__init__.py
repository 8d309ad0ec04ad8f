"""Encoders, our own code with the state-dict names of the published weights.

`build_encoder` is how networks make one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depth_node.training.networks.encoders.base import IMAGENET_MEAN, IMAGENET_STD, Encoder
from depth_node.training.networks.encoders.efficientnet_lite import (
    EfficientNetLite,
    EfficientNetLite0,
    pretrained_weights_path,
)
from depth_node.training.networks.encoders.weights import load_encoder_weights
from depth_node.training.registry import check_options, resolve

__all__ = [
    'ENCODERS',
    'IMAGENET_MEAN',
    'IMAGENET_STD',
    'EfficientNetLite',
    'EfficientNetLite0',
    'Encoder',
    'build_encoder',
    'load_encoder_weights',
    'pretrained_weights_path',
]

_HERE = 'depth_node.training.networks.encoders'
_TIMM = 'timm:'
ENCODERS = {
    'resnet18': f'{_HERE}.resnet:ResNet',
    'resnet34': f'{_HERE}.resnet:ResNet',
    'resnet50': f'{_HERE}.resnet:ResNet',
    'densenet121': f'{_HERE}.densenet:DenseNet',
    'densenet169': f'{_HERE}.densenet:DenseNet',
    'vgg16': f'{_HERE}.vgg:VGG16',
    'vgg16_bn': f'{_HERE}.vgg:VGG16',
    'mobilenet_v1': f'{_HERE}.mobilenet_v1:MobileNetV1',
    'efficientnet_lite0': f'{_HERE}.efficientnet_lite:EfficientNetLite',
    'efficientnet_lite1': f'{_HERE}.efficientnet_lite:EfficientNetLite',
    'efficientnet_lite2': f'{_HERE}.efficientnet_lite:EfficientNetLite',
}
_SETTINGS: dict[str, dict[str, Any]] = {
    'resnet18': {'depth': 18},
    'resnet34': {'depth': 34},
    'resnet50': {'depth': 50},
    'densenet121': {'depth': 121},
    'densenet169': {'depth': 169},
    'vgg16': {'batch_norm': False},
    'vgg16_bn': {'batch_norm': True},
    'mobilenet_v1': {},
    'efficientnet_lite0': {'level': 0},
    'efficientnet_lite1': {'level': 1},
    'efficientnet_lite2': {'level': 2},
}


def build_encoder(
    name: str,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    **options: Any,
) -> Encoder:
    """Make an encoder by its name.

    Args:
        name: one of ENCODERS, or `timm:` and a name that timm knows.
        pretrained: start from ImageNet weights, where a package brings them.
        weights: a weights file, which comes before `pretrained`.
        options: of the encoder's class.

    Returns:
        A module with `channels`, `mean` and `std`; its forward gives five maps, /2 to /32.

    Raises:
        ValueError: an unknown name or option, `pretrained` without weights to be had, or a file
            of another encoder.
        FileNotFoundError: no such weights file, or the weights package is not installed.
    """
    fetch = pretrained and weights is None
    if name.startswith(_TIMM):
        target = resolve({'timm': f'{_HERE}.timm:TimmEncoder'}, 'timm', 'encoder')
        settings: dict[str, Any] = {'name': name.removeprefix(_TIMM), 'pretrained': fetch}
    else:
        target = resolve(ENCODERS, name, 'encoder')
        settings = dict(_SETTINGS[name])
        if target is EfficientNetLite:
            settings['pretrained'] = fetch
        elif fetch:
            raise ValueError(
                f'encoder {name}: pretrained: true, but no package brings its ImageNet weights; '
                f'save them elsewhere by torch.save(model.state_dict(), "{name}.pth") and give '
                'the path of that file as `encoder_weights`, or set pretrained: false'
            )
    check_options(target, options, f'options of encoder {name}')
    fixed = sorted(set(settings) & set(options))
    if fixed:
        raise ValueError(f'options of encoder {name}: {fixed[0]!r} follows from its name')
    encoder = target(**settings, **options)
    assert isinstance(encoder, Encoder)
    if weights is not None:
        load_encoder_weights(encoder, weights)
    return encoder

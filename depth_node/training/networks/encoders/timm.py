"""Encoders of the package timm, where it imports; `timm:<its name>` in a configuration."""

from __future__ import annotations

import importlib

from depth_node.training.networks.encoders.base import Encoder, Triple
import torch

REDUCTIONS = [2, 4, 8, 16, 32]


class TimmEncoder(Encoder):
    """A timm network in its `features_only` form."""

    def __init__(self, *, name: str, pretrained: bool = False) -> None:
        """Build the encoder.

        Args:
            name: as timm knows it.
            pretrained: let timm load (and, where it must, download) its weights.

        Raises:
            ValueError: timm does not import, does not know the name, or the network has not the
                five sizes.
        """
        super().__init__()
        title = f'timm:{name}'
        try:
            timm = importlib.import_module('timm')
        except Exception as error:  # a torchvision that does not fit torch raises RuntimeError
            raise ValueError(
                f'encoder {title}: the package timm does not import ({error}); install timm with '
                'the torchvision of this torch, or use a built-in encoder such as resnet50'
            ) from error
        try:
            model = timm.create_model(name, features_only=True, pretrained=pretrained)
        except Exception as error:  # timm raises RuntimeError, urllib's and the hub's own errors
            raise ValueError(
                f'encoder {title}: timm cannot make it ({error}); see '
                f"timm.list_models('*{name.split('_')[0]}*') for the names it knows"
            ) from error
        found = list(model.feature_info.reduction())
        if found != REDUCTIONS:
            raise ValueError(
                f'encoder {title}: features at 1/{found} of the size, expected 1/{REDUCTIONS}; '
                'choose a network with a stride of 2 in its stem, not a patch embedding'
            )
        self.title, self.source = title, f"timm's {name}"
        self.classifier_keys = ('fc.', 'classifier.', 'head.')
        self.model = model
        self.channels = tuple(int(c) for c in model.feature_info.channels())
        settings = getattr(model, 'pretrained_cfg', None) or getattr(model, 'default_cfg', {})
        self.mean = _in_255(settings.get('mean'), self.mean)
        self.std = _in_255(settings.get('std'), self.std)

    def current_key(self, key: str) -> str:
        """Put a key of timm's file below `model`."""
        return key if key.startswith('model.') else f'model.{key}'

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Compute the five maps, finest first."""
        return list(self.model(batch))


def _in_255(unit: tuple[float, ...] | None, default: Triple) -> Triple:
    if unit is None or len(unit) != 3:
        return default
    return (255.0 * unit[0], 255.0 * unit[1], 255.0 * unit[2])

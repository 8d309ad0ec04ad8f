"""Eigen & Fergus 2015 (arXiv:1411.4734): three scales for depth, normals and labels.

Scale 1 sees the whole picture through full layers; scale 2 refines at a quarter of the picture,
scale 3 at half. The tasks share scale 1 and have scales 2 and 3 of their own, as in the paper's
joint network. Two stages of training: `stage: scale12`, then `stage: scale3` with the rest frozen.

Unverified (depth-systems: from recall): paddings, hence: no padding in the first layer of every
scale and in the first VGG block, which gives the paper's 112x150 to 7x9, 14x19, 55x74; the maps
of scale 2 are doubled with corners aligned, 55x74 to 109x147; and the stride-2 layer of scale 3,
110x148, meets them through a 2x2 maximum of stride 1. Labelling from RGB-D, where depth and
normals are more input channels, is not here: the network takes pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

from depth_node.training.networks.base import DepthNetwork, checked_range
from depth_node.training.networks.eigen14 import CoarseConvs, quarter_size
from depth_node.training.networks.encoders import IMAGENET_MEAN, IMAGENET_STD, build_encoder
from depth_node.training.networks.encoders.vgg import VGG16
from depth_node.training.networks.log_depth import (
    checked_choice,
    clamped_depth,
    middle_log_depth,
    open_depth,
    resized,
    start_head,
    start_weights,
)
import torch
from torch import nn
from torch.nn import functional

ENCODER_NAMES = ('alexnet', 'vgg16')
STAGES = ('scale12', 'scale3')
HEADS = ('depth', 'normals', 'labels')
NUM_CLASSES = (4, 13, 40)  # the paper's three labellings of NYU
CONTEXT_CHANNELS = 64


class _Vgg16Convs(nn.Module):
    """VGG-16 up to its last pool; its first two convolutions see no padding."""

    def __init__(self, weights: str | None) -> None:
        super().__init__()
        encoder = build_encoder('vgg16', weights=weights)
        assert isinstance(encoder, VGG16)
        self.vgg = encoder

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        # What two padded 3x3 convolutions give two pixels from the border, padding did not touch.
        first = self.vgg.features[:4](batch)[:, :, 2:-2, 2:-2]
        maps: torch.Tensor = self.vgg.features[4:](first)
        return maps

    @staticmethod
    def size_after(size_hw: tuple[int, int]) -> tuple[int, int]:
        return (size_hw[0] - 4) // 32, (size_hw[1] - 4) // 32


class _Scale1(nn.Module):
    """The whole picture to 64 channels of context at a sixteenth of it."""

    def __init__(
        self, encoder: str, size_hw: tuple[int, int], dropout: float, weights: str | None
    ) -> None:
        super().__init__()
        self.convs: CoarseConvs | _Vgg16Convs
        if encoder == 'vgg16':
            self.convs, channels = _Vgg16Convs(weights), 512
        else:
            self.convs, channels = CoarseConvs(), 256
            if weights is not None:
                self.convs.load_pretrained(weights)
        height, width = self.convs.size_after(size_hw)
        self.context_hw = size_hw[0] // 16, size_hw[1] // 16
        self.full6 = nn.Linear(channels * height * width, 4096)
        self.full7 = nn.Linear(4096, CONTEXT_CHANNELS * self.context_hw[0] * self.context_hw[1])
        self.dropout = dropout
        start_weights(self.full6)
        start_weights(self.full7)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        hidden = self.full6(self.convs(batch).flatten(1)).relu()
        hidden = functional.dropout(hidden, self.dropout, self.training)
        return self.full7(hidden).relu().unflatten(1, (CONTEXT_CHANNELS, *self.context_hw))


class _Scale2(nn.Module):
    """Features of the picture at a quarter, with the context, to a first map of one task."""

    def __init__(self, channels: int, start: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 9, stride=2)
        self.conv2 = nn.Conv2d(96 + CONTEXT_CHANNELS, 64, 5, padding=2)
        self.conv3 = nn.Conv2d(64, 64, 5, padding=2)
        self.conv4 = nn.Conv2d(64, 64, 5, padding=2)
        self.conv5 = nn.Conv2d(64, channels, 5, padding=2)
        start_weights(self)
        start_head(self.conv5, start)

    def forward(self, batch: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        edges = functional.max_pool2d(self.conv1(batch).relu(), 2)
        maps = torch.cat([edges, resized(context, edges.shape[-2:])], 1)
        for conv in (self.conv2, self.conv3, self.conv4):
            maps = conv(maps).relu()
        return self.conv5(maps)


class _Scale3(nn.Module):
    """Features of the picture at half, with the map of scale 2, to the final map of one task."""

    def __init__(self, channels: int, start: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 9, stride=2)
        self.conv2 = nn.Conv2d(96 + channels, 64, 5, padding=2)
        self.conv3 = nn.Conv2d(64, 64, 5, padding=2)
        self.conv4 = nn.Conv2d(64, channels, 5, padding=2)
        start_weights(self)
        start_head(self.conv4, start)

    def forward(self, batch: torch.Tensor, scale2: torch.Tensor) -> torch.Tensor:
        edges = functional.max_pool2d(self.conv1(batch).relu(), 2, stride=1)
        size_hw = (int(edges.shape[-2]), int(edges.shape[-1]))
        coarse = functional.interpolate(scale2, size=size_hw, mode='bilinear', align_corners=True)
        maps = torch.cat([edges, coarse], 1)
        return self.conv4(self.conv3(self.conv2(maps).relu()).relu())


class EigenFergus15(DepthNetwork):
    """55x74 after scale 2, 109x147 after scale 3, for 228x304; `raw` is log depth."""

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (228, 304),
        encoder: str = 'vgg16',
        heads: Sequence[str] = ('depth',),
        num_classes: int = 40,
        stage: str = 'scale12',
        dropout: float = 0.5,
        depth_range_m: tuple[float, float] = (0.5, 10.0),
        pretrained: bool = False,
        encoder_weights: str | None = None,
    ) -> None:
        """Build the network.

        Args:
            size_hw: training and export size; both sides divisible by 4.
            encoder: of scale 1, 'alexnet' or 'vgg16'.
            heads: tasks, 'depth' among them: it is what `forward` returns.
            num_classes: of the labels: 4, 13 or 40.
            stage: 'scale12' trains and predicts by scales 1 and 2; 'scale3' trains scale 3.
            dropout: share of the 4096 features that are dropped in training.
            depth_range_m: the output is clamped to this.
            pretrained: must be False without `encoder_weights`.
            encoder_weights: ImageNet weights of the encoder: torchvision's vgg16, or a state
                dict of `CoarseConvs` for 'alexnet'.

        Raises:
            ValueError: an impossible option, or weights that do not fit.
        """
        super().__init__()
        size_hw = (int(size_hw[0]), int(size_hw[1]))
        quarter_hw = quarter_size(size_hw)
        checked_choice('encoder', encoder, ENCODER_NAMES)
        self.stage = checked_choice('stage', stage, STAGES)
        for head in heads:
            checked_choice('head', head, HEADS)
        if 'depth' not in heads or len(set(heads)) != len(heads):
            raise ValueError(
                f'heads {list(heads)}: expected depth, which forward returns, and each once; to '
                'train another task alone give depth a weight of 0 in the objective'
            )
        if num_classes not in NUM_CLASSES:
            raise ValueError(f'num_classes {num_classes}: expected one of {NUM_CLASSES}')
        if pretrained and encoder_weights is None:
            raise ValueError(
                "pretrained: set encoder_weights to a file with the state dict of torchvision's "
                'vgg16 (encoder vgg16) or of CoarseConvs (encoder alexnet; no public AlexNet has '
                'its widths), or pretrained: false'
            )
        self.depth_range_m = checked_range(depth_range_m)
        self.size_hw = size_hw
        # 2 n - 1: doubled with corners aligned.
        half_hw = (2 * quarter_hw[0] - 1, 2 * quarter_hw[1] - 1)
        self.output_hw = quarter_hw if stage == 'scale12' else half_hw
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        channels = {'depth': 1, 'normals': 3, 'labels': num_classes}
        starts = {'depth': middle_log_depth(self.depth_range_m)}
        self.scale1 = _Scale1(encoder, size_hw, dropout, encoder_weights)
        self.scale2 = nn.ModuleDict(
            {head: _Scale2(channels[head], starts.get(head, 0.0)) for head in heads}
        )
        self.scale3 = nn.ModuleDict(
            {head: _Scale3(channels[head], starts.get(head, 0.0)) for head in heads}
        )
        for module in self._frozen():
            module.requires_grad_(False)

    def _frozen(self) -> tuple[nn.Module, ...]:
        return (self.scale3,) if self.stage == 'scale12' else (self.scale1, self.scale2)

    def train(self, mode: bool = True) -> EigenFergus15:
        """Set the mode; frozen scales stay in evaluation mode (no dropout)."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _maps(self, batch: torch.Tensor, heads: Sequence[str]) -> dict[str, torch.Tensor]:
        context = self.scale1(batch)
        maps = {head: self.scale2[head](batch, context) for head in heads}
        if self.stage == 'scale3':
            maps = {head: self.scale3[head](batch, coarse) for head, coarse in maps.items()}
        return {head: values.float() for head, values in maps.items()}

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.forward`; the other tasks are not computed."""
        return clamped_depth(self._maps(batch, ['depth'])['depth'], self.depth_range_m)

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Predict all tasks.

        Returns:
            `raw`, log depth; `prediction`, its depth without the clamp; where the network has
            the heads: `normals` (N, 3, h, w) of length 1, `labels` (N, classes, h, w), logits.
        """
        maps = self._maps(batch, list(self.scale2))
        outputs = {'prediction': open_depth(maps['depth']), 'raw': maps['depth']}
        if 'normals' in maps:
            outputs['normals'] = functional.normalize(maps['normals'], dim=1, eps=1e-6)
        if 'labels' in maps:
            outputs['labels'] = maps['labels']
        return outputs

    def encode(self, depth: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.encode`."""
        return depth.log()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Name the paper's rates: scale1_conv, scale1_full, outer and inner.

        `outer` holds the first and last convolution of scales 2 and 3, `inner` those between.
        """
        if self.stage == 'scale12':
            groups = {
                'scale1_conv': list(self.scale1.convs.parameters()),
                'scale1_full': [
                    *self.scale1.full6.parameters(), *self.scale1.full7.parameters()
                ],
            }  # fmt: skip
            stacks = self.scale2
        else:
            groups, stacks = {}, self.scale3
        groups['outer'], groups['inner'] = [], []
        for stack in stacks.values():
            convs = list(stack.children())
            for conv in convs:
                name = 'outer' if conv in (convs[0], convs[-1]) else 'inner'
                groups[name].extend(conv.parameters())
        return groups

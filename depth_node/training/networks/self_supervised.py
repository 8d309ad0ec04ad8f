"""What networks that learn from video or stereo pairs alone have in common."""

from __future__ import annotations

from abc import abstractmethod

from depth_node.training.networks.base import DepthNetwork
from depth_node.training.networks.encoders import Encoder, build_encoder
from depth_node.training.networks.encoders.base import init_convolutions
import torch
from torch import nn

SCALES = 4  # of inverse depth: full size, half, quarter, eighth


class SelfSupervisedNetwork(DepthNetwork):
    """Inverse depth at four sizes, and a guess of the camera's motion between pictures.

    Nothing tells such a network how large the world is: its depth is relative, and the motions
    are in the same unknown unit.
    """

    output_kind = 'rel_depth'

    @abstractmethod
    def inv_depths(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Predict 1 / depth at SCALES sizes, finest (the input's) first; positive, float32."""

    @abstractmethod
    def pose(
        self,
        target: torch.Tensor,
        sources: torch.Tensor,
        *,
        inv_depth: torch.Tensor | None = None,
        K: torch.Tensor | None = None,
        source_K: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Estimate how the camera moved.

        Args:
            target: (N, 3, H, W), normalised.
            sources: (N, S, 3, H, W), normalised.
            inv_depth: (N, 1, H, W), the target's, of which the unit of the result is taken by
                networks that solve for the motion; the others ignore it and the intrinsics.
            K: (N, 3, 3), the target's.
            source_K: (N, S, 3, 3).

        Returns:
            (N, S, 4, 4), moves points from the target's frame into each source's.
        """

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """See `DepthNetwork.forward`."""
        return 1 / self.inv_depths(batch)[0]

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Predict `prediction` (depth) and `inv_depth_0` (finest) to `inv_depth_3`."""
        maps = self.inv_depths(batch)
        return {
            'prediction': 1 / maps[0],
            **{f'inv_depth_{scale}': inv for scale, inv in enumerate(maps)},
        }

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Split the trainable parameters into `encoder`, `decoder` (depth) and `pose`."""
        groups = super().parameter_groups()
        motion = {
            id(p) for name in ('pose_net', 'flow_net') for p in _parameters(self, name)
        }  # fmt: skip
        rest = [p for p in groups.pop('decoder', []) if id(p) not in motion]
        moving = [p for p in self.parameters() if p.requires_grad and id(p) in motion]
        return {
            **groups,
            **({'decoder': rest} if rest else {}),
            **({'pose': moving} if moving else {}),
        }


def _parameters(network: nn.Module, name: str) -> list[nn.Parameter]:
    part = getattr(network, name, None)
    return list(part.parameters()) if isinstance(part, nn.Module) else []


def check_sources(sources: torch.Tensor, expected: int) -> None:
    """Refuse another number of source pictures than the pose network was built for.

    Raises:
        ValueError: naming the option.
    """
    if sources.ndim != 5 or sources.shape[1] != expected:
        raise ValueError(
            f'sources {tuple(sources.shape)}: expected (N, {expected}, 3, H, W); the network '
            'option `sources` must be the number of views that the data set gives'
        )


def build_wide_encoder(
    name: str, channels: int, *, pretrained: bool, weights: str | None
) -> Encoder:
    """Make a ResNet that sees several pictures, or maps, one on top of the other.

    With ImageNet weights the first layer's are repeated and shared out, so that its sums keep
    their size (Monodepth2, arXiv:1806.01260, section 4); else they are drawn.
    """
    encoder = build_encoder(name, pretrained=pretrained, weights=weights)
    old = encoder.conv1
    assert isinstance(old, nn.Conv2d)
    wide = nn.Conv2d(channels, old.out_channels, 7, 2, 3, bias=False)
    if pretrained or weights is not None:
        repeats = -(-channels // 3)
        with torch.no_grad():
            wide.weight.copy_(old.weight.repeat(1, repeats, 1, 1)[:, :channels] * 3 / channels)
    else:
        init_convolutions(wide)
    encoder.conv1 = wide
    return encoder

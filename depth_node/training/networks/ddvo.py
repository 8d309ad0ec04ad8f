"""DDVO (Wang et al. 2018, arXiv:1712.00175): DispNet, and motion by direct alignment.

The motion between two pictures is solved for, given the inverse depth (`training.direct_vo`),
instead of guessed by a second network. The paper's best result starts the search at the guess of
a pose network: train with `motion: network`, then go on with `motion: both`.
"""

from __future__ import annotations

from depth_node.training.direct_vo import DirectVoSettings, direct_pose
from depth_node.training.networks.base import checked_size
from depth_node.training.networks.sfmlearner import (
    INV_DEPTH_OFFSET,
    DispAndPose,
    DispNet,
    PoseNet,
    refuse_pretrained,
)
import torch

MOTIONS = ('direct', 'network', 'both')


class DDVO(DispAndPose):
    """DispNet, a pose network, and direct alignment."""

    mean = (127.0, 127.0, 127.0)
    std = (127.0, 127.0, 127.0)
    depth_range_m = (1 / 10.01, 1 / INV_DEPTH_OFFSET)

    def __init__(
        self,
        *,
        size_hw: tuple[int, int] = (128, 416),
        motion: str = 'direct',
        sources: int = 2,
        levels: int = 5,
        iterations: int = 10,
        pretrained: bool = False,
    ) -> None:
        """Build the networks; their parameters are the same whatever `motion` is.

        Args:
            size_hw: training and export size; both sides divisible by 8.
            motion: 'direct', solved for from rest; 'network', guessed; 'both', solved for from
                the guess.
            sources: views of each frame, for the pose network.
            levels: of the pyramid of direct alignment, at most.
            iterations: of direct alignment at each level, at most.
            pretrained: must be False.

        Raises:
            ValueError: an impossible size or number, an unknown `motion`, or `pretrained`.
        """
        super().__init__()
        self.size_hw = self.output_hw = checked_size(size_hw, 8, least=32, paper='128x416')
        refuse_pretrained(pretrained)
        if motion not in MOTIONS:
            raise ValueError(f'motion {motion!r}: expected one of {", ".join(MOTIONS)}')
        if sources < 1:
            raise ValueError(f'sources {sources}: expected at least 1')
        self.motion = motion
        self.settings = DirectVoSettings(levels=levels, iterations=iterations)
        self.disp_net = DispNet()
        self.pose_net = PoseNet(sources=sources)
        if motion == 'direct':
            self.pose_net.requires_grad_(False)

    def pose(
        self,
        target: torch.Tensor,
        sources: torch.Tensor,
        *,
        inv_depth: torch.Tensor | None = None,
        K: torch.Tensor | None = None,
        source_K: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `SelfSupervisedNetwork.pose`; solving needs `inv_depth` and `K`.

        Raises:
            ValueError: they are missing.
        """
        start = None
        if self.motion != 'direct':
            start = super().pose(target, sources)
            if self.motion == 'network':
                return start
        if inv_depth is None or K is None:
            raise ValueError(
                f'motion {self.motion!r} is solved for from depth: pass inv_depth and K'
            )
        count = sources.shape[1]

        def for_each_source(values: torch.Tensor) -> torch.Tensor:
            return values.repeat_interleave(count, 0)

        found = direct_pose(
            for_each_source(target),
            sources.flatten(0, 1),
            for_each_source(inv_depth),
            for_each_source(K),
            None if source_K is None else source_K.flatten(0, 1),
            start=None if start is None else start.flatten(0, 1),
            settings=self.settings,
        )
        return found.unflatten(0, (-1, count))

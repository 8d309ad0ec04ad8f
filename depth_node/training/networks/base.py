"""What every trainable depth network offers to objectives and to the exporter."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from depth_node.training.networks.confidence import ConfidenceHead
import torch
from torch import nn

OUTPUT_KINDS = (
    'depth', 'log_depth', 'inv_depth', 'canonical_depth', 'rel_depth', 'rel_inv_depth',
)  # fmt: skip


class DepthNetwork(nn.Module):
    """A network from a normalised batch to a depth map.

    Constructors take keyword-only options, all plain values, `size_hw` and `pretrained` among
    them; building with `pretrained=False` touches no file.

    Attributes:
        size_hw: the size it is trained at, which the exported graph is fixed to.
        output_hw: the size of its map; smaller than `size_hw` for most.
        mean: per channel, subtracted from RGB in 0..255.
        std: per channel, divides what is left.
        output_kind: what `forward` returns, one of OUTPUT_KINDS (the model card's words).
        canonical_focal_px: for `canonical_depth`, the focal length [px, at `size_hw`] for which
            the output is metric; None for the others.
        depth_range_m: smallest and largest depth that the network can return, metres (unit of
            the output for relative kinds).
        optional_modules: modules that some options add to a network that works without them:
            weights that lack them, or have them in excess, still fit.
        growable_modules: modules that begin as the identity: weights that lack them, or have
            fewer, still fit; those that have them fit no network without.
        has_confidence: whether `predict` gives a confidence too; then `confidence_head` makes it.
    """

    size_hw: tuple[int, int]
    output_hw: tuple[int, int]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)
    output_kind: str = 'depth'
    canonical_focal_px: float | None = None
    depth_range_m: tuple[float, float] = (0.1, 100.0)
    optional_modules: tuple[str, ...] = ()
    growable_modules: tuple[str, ...] = ()
    has_confidence: bool = False
    confidence_head: ConfidenceHead | None  # no default: it would hide the module of that name

    @abstractmethod
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Predict for inference; this is what is exported.

        Args:
            batch: (N, 3, H, W) float32, normalised by `mean` and `std`.

        Returns:
            (N, 1, h, w) float32 of `output_kind`; depths and inverse depths are positive.
        """

    def predict(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return all that inference gives: what `forward` does, and confidence where there is one.

        Confidence is (N, 1, h, w) float32, 0 to 1, see `networks.confidence`.
        """
        return (self(batch),)

    def outputs(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Predict for training: `prediction`, as `forward`, and whatever else losses need.

        A network whose paper computes its loss in another space (logarithms, m / depth) adds
        `raw` in that space, and overrides `encode` to bring the truth there.
        """
        return {'prediction': self(batch)}

    def encode(self, depth: torch.Tensor) -> torch.Tensor:
        """Bring true depth [m], positive, to the space of `outputs()['raw']`."""
        return depth

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Split the trainable parameters by name, for rates of their own (`optim.group_lr`).

        By default `encoder` (the module of that name, if any) and `decoder` (the rest). Frozen
        parameters (requires_grad False, a stage that is already trained) belong to no group.
        """
        encoder = getattr(self, 'encoder', None)
        known = {id(p) for p in encoder.parameters()} if isinstance(encoder, nn.Module) else set()
        groups: dict[str, list[nn.Parameter]] = {'encoder': [], 'decoder': []}
        for parameter in self.parameters():
            if parameter.requires_grad:
                groups['encoder' if id(parameter) in known else 'decoder'].append(parameter)
        return {name: members for name, members in groups.items() if members}

    def normalise(self, rgb: torch.Tensor) -> torch.Tensor:
        """Turn RGB in 0..255, (N, 3, H, W), any dtype, into what `forward` takes."""
        mean = torch.tensor(self.mean, device=rgb.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=rgb.device).view(1, 3, 1, 1)
        return (rgb.float() - mean) / std


def checked_range(depth_range_m: Sequence[float]) -> tuple[float, float]:
    """Return the range as two numbers.

    Raises:
        ValueError: it is empty or not positive.
    """
    if len(depth_range_m) != 2 or not 0 < depth_range_m[0] < depth_range_m[1]:
        raise ValueError(f'depth range {depth_range_m}: expected 0 < near < far, metres')
    return float(depth_range_m[0]), float(depth_range_m[1])


def checked_size(
    size_hw: Sequence[int], multiple: int, *, least: int | None = None, paper: str = ''
) -> tuple[int, int]:
    """Return the size as whole numbers.

    Args:
        size_hw: height and width.
        multiple: what both must be divisible by; 1 takes any.
        least: what both must be at least; `multiple` where it is None.
        paper: the paper's size, for the message.

    Raises:
        ValueError: it is another.
    """
    least = multiple if least is None else least
    if len(size_hw) != 2 or any(side < least or side % multiple for side in size_hw):
        divisible = f'divisible by {multiple} and ' if multiple > 1 else ''
        raise ValueError(
            f'network size {tuple(size_hw)}: both sides must be {divisible}at least {least}'
            + (f'; the paper has {paper}' if paper else '')
        )
    return int(size_hw[0]), int(size_hw[1])

"""Depth, set loss and gradients for the two-streamed network."""

from __future__ import annotations

from dataclasses import dataclass

from depth_node.training.geometry import without_autocast
from depth_node.training.losses.masked import both_known, forward_differences
from depth_node.training.losses.pixel import l2_loss
from depth_node.training.losses.set_loss import set_loss
from depth_node.training.networks.base import DepthNetwork
from depth_node.training.objectives.base import Batch, Objective, truth
from depth_node.training.objectives.supervised import RESIZES, resize_truth
import torch
from torch.nn import functional


@dataclass(frozen=True)
class Move:
    """How a copy of a picture lies over the original.

    Pixel (u, v) of a copy's map shows what the original has at u' = u + right (mirrored: width -
    1 - u + right), v' = v + down. Pixels of the map, so that maps move by whole pixels.
    """

    mirrored: bool = False
    right: int = 0
    down: int = 0

    def inverse(self) -> Move:
        """Return the way back; mirroring is its own."""
        return Move(self.mirrored, self.right if self.mirrored else -self.right, -self.down)

    def of_map(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Move maps.

        Args:
            maps: (..., h, w) of the original.

        Returns:
            The copy's, (..., h, w), and (h, w) bool, where the original has such a pixel.
        """
        height, width = maps.shape[-2:]
        columns = torch.arange(width, device=maps.device)
        rows = torch.arange(height, device=maps.device) + self.down
        columns = (width - 1 - columns if self.mirrored else columns) + self.right
        inside = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
        moved = maps[..., rows.clamp(0, height - 1), :][..., columns.clamp(0, width - 1)]
        return moved, inside

    def of_picture(self, rgb: torch.Tensor, map_hw: tuple[int, int]) -> torch.Tensor:
        """Move pictures (N, 3, H, W), whose maps have size `map_hw`; borders are repeated."""
        # Coordinates run from -1 to 1 between the outer edges of pixels, of pictures as of maps.
        theta = rgb.new_tensor(
            [
                [-1.0 if self.mirrored else 1.0, 0.0, 2 * self.right / map_hw[1]],
                [0.0, 1.0, 2 * self.down / map_hw[0]],
            ]
        )
        # Mixed precision would multiply the coordinates in half: off by up to half a pixel.
        grid = without_autocast(functional.affine_grid)(
            theta.expand(rgb.shape[0], 2, 3), list(rgb.shape), align_corners=False
        )
        return functional.grid_sample(
            rgb, grid, mode='bilinear', padding_mode='border', align_corners=False
        )


class TwoStreamedObjective(Objective):
    """Squared errors of log depth and of its gradients, and agreement within a set.

    L_single + set_weight * Omega_set for the depth stream, the squared error of the gradient
    stream, and that of the fused map where the network fuses. Source: Li, Klein & Yao 2017,
    arXiv:1607.00730; the weights and the number of copies are unverified (depth-systems).

    Each picture becomes a set: itself and copies that are mirrored, shifted and coloured. The
    moves are drawn by a generator that the batch seeds, so that a step can be repeated.
    """

    def __init__(
        self,
        *,
        copies: int = 3,
        set_weight: float = 1.0,
        gradient_weight: float = 1.0,
        shift: float = 0.1,
        colour: float = 0.2,
        target_resize: str = 'nearest',
    ) -> None:
        """Choose the set and the weights.

        Args:
            copies: pictures in a set, the original among them.
            set_weight: of the set loss.
            gradient_weight: of the gradient stream's error.
            shift: largest shift, as a share of each side.
            colour: largest relative change of a channel.
            target_resize: how the truth comes to the map's size, see `Supervised`.

        Raises:
            ValueError: an impossible value.
        """
        super().__init__()
        if copies < 2 or set_weight < 0 or gradient_weight < 0:
            raise ValueError(
                f'copies {copies}, set_weight {set_weight}, gradient_weight {gradient_weight}: '
                'expected 2 or more copies and weights >= 0'
            )
        if not (0 <= shift < 0.5 and 0 <= colour < 1):
            raise ValueError(f'shift {shift}, colour {colour}: expected 0 to 0.5 and 0 to 1')
        if target_resize not in RESIZES or target_resize == 'upsample':
            raise ValueError(
                f'target_resize {target_resize!r}: the gradients are those of the map, expected '
                f'one of {[how for how in RESIZES if how != "upsample"]}'
            )
        self.copies, self.shift, self.colour = copies, shift, colour
        self.set_weight, self.gradient_weight = set_weight, gradient_weight
        self.target_resize = target_resize

    def losses(self, network: DepthNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """See `Objective.losses`."""
        target, valid = truth(network, batch)
        target, valid = resize_truth(target, valid, network.output_hw, self.target_resize)
        log_target = torch.where(valid, target, 1.0).log()
        rgb = batch['rgb'].float()
        generator = torch.Generator().manual_seed(int(batch['rgb'].sum(dtype=torch.int64)))
        moves = self.draw_moves(network.output_hw, generator)
        pictures, targets, valids = [rgb], [log_target], [valid]
        for move in moves[1:]:
            moved, inside = move.of_map(log_target)
            gain = 1 + self.colour * (2 * torch.rand(len(rgb), 3, generator=generator) - 1)
            copy = move.of_picture(rgb, network.output_hw) * gain[:, :, None, None].to(rgb)
            pictures.append(copy.clamp(0, 255))
            targets.append(moved)
            valids.append(move.of_map(valid)[0] & inside)
        normalised = network.normalise(torch.cat(pictures))
        outputs = network.outputs(normalised.contiguous(memory_format=torch.channels_last))
        if 'depth_stream' not in outputs or 'gradients' not in outputs:
            raise ValueError(
                f'objective two_streamed: {type(network).__name__} has no depth_stream and '
                'gradients; use it with network two_streamed'
            )
        target, valid = torch.cat(targets), torch.cat(valids)
        gradients, known = gradients_of(target, valid)
        depth = outputs['depth_stream'].float()
        parts = {
            'single': l2_loss(depth, target, valid),
            'set': self.set_weight * set_loss(*in_one_frame(depth, moves)),
            'gradients': self.gradient_weight * l2_loss(outputs['gradients'], gradients, known),
        }
        if outputs['raw'] is not outputs['depth_stream']:
            parts['fused'] = l2_loss(outputs['raw'], target, valid)
        loss = torch.stack(list(parts.values())).sum()
        return {'loss': loss, **{name: part.detach() for name, part in parts.items()}}

    def draw_moves(self, map_hw: tuple[int, int], generator: torch.Generator) -> list[Move]:
        """Draw how the copies lie; the first is the original."""
        moves = [Move()]
        for _ in range(self.copies - 1):
            mirrored, right, down = torch.rand(3, generator=generator).tolist()
            limits = int(self.shift * map_hw[1]), int(self.shift * map_hw[0])
            moves.append(
                Move(
                    mirrored < 0.5,
                    round((2 * right - 1) * limits[0]),
                    round((2 * down - 1) * limits[1]),
                )
            )
        return moves


def in_one_frame(maps: torch.Tensor, moves: list[Move]) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring the copies' maps back to the original's frame.

    Args:
        maps: (N * B, 1, h, w), all pictures of copy 0, then of copy 1, ...
        moves: N, how the copies lie.

    Returns:
        (B, N, h, w) and where each covers the frame, as `set_loss` takes them.
    """
    back, covered = [], []
    for copy, move in zip(maps.chunk(len(moves)), moves, strict=True):
        values, inside = move.inverse().of_map(copy[:, 0])
        back.append(values)
        covered.append(inside.expand_as(values))
    return torch.stack(back, 1), torch.stack(covered, 1)


def gradients_of(maps: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return forward differences to the right and down, and where they are known.

    Args:
        maps: (N, 1, h, w).
        valid: (N, 1, h, w) bool.

    Returns:
        (N, 2, h, w) and bool of that shape; the last column and the last row are not known.
    """
    values, known = [], []
    for axis, pad in ((-1, (0, 1, 0, 0)), (-2, (0, 0, 0, 1))):
        values.append(functional.pad(forward_differences(maps, axis), pad))
        known.append(functional.pad(both_known(valid, axis), pad, value=False))
    return torch.cat(values, 1), torch.cat(known, 1)

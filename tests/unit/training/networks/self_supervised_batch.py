"""Batches of a true scene for the self-supervised networks: written, read, collated."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from depth_node.training.datasets import open_dataset
from depth_node.training.loading import FrameTensors, collate_frames
import torch

_PATH = Path(__file__).parents[1] / 'datasets' / 'write_sfm_triptych.py'
_SPEC = importlib.util.spec_from_file_location('write_sfm_triptych', _PATH)
_WRITER = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_WRITER)


def triptych_batch(
    root: Path, size_hw: tuple[int, int], *, frames: int = 1, seed: int = 0, truth: bool = False
) -> dict[str, Any]:
    """Write triptychs and read them as training does.

    Args:
        root: an empty folder.
        size_hw: of the pictures.
        frames: pictures of the batch.
        seed: of the scenes.
        truth: fill in depth and poses, which the format does not have.
    """
    written = _WRITER.write(root, frames=frames, size_hw=size_hw, seed=seed)['train']
    dataset = FrameTensors(open_dataset('sfm_triptych', root, 'train'), size_hw)
    batch = collate_frames([dataset[index] for index in range(frames)])
    if truth:
        batch['depth'] = torch.stack([torch.from_numpy(f['depth']) for f in written])[:, None]
        batch['view_from_frame'] = torch.stack(
            [torch.from_numpy(f['view_from_frame']).float() for f in written]
        )
        batch['view_depth'] = torch.stack(
            [torch.stack([torch.from_numpy(d) for d in f['view_depths']]) for f in written]
        )[:, :, None]
    return batch


def overfit(
    network: Any, objective: Any, batch: dict[str, Any], *, steps: int, lr: float
) -> list[float]:
    """Train on one batch by Adam; the losses of all steps."""
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.999))
    curve = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = objective.losses(network, batch)['loss']
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        curve.append(loss.item())
    return curve

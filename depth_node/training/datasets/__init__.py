"""Training data: one file per format."""

from depth_node.training.datasets.rendered import (
    DatasetError,
    RenderedFrames,
    SeededSampler,
    fingerprint,
)

__all__ = ['DatasetError', 'RenderedFrames', 'SeededSampler', 'fingerprint']

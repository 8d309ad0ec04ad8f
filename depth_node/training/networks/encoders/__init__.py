"""Pretrained encoders, our own code with the state-dict names of the published weights."""

from depth_node.training.networks.encoders.efficientnet_lite import (
    EfficientNetLite0,
    pretrained_weights_path,
)

__all__ = ['EfficientNetLite0', 'pretrained_weights_path']

"""Losses on depth: each takes `valid`, and is zero, with a gradient, where nothing is valid."""

from depth_node.training.losses.depth import gradient_loss, log_l1_loss, silog_loss

__all__ = ['gradient_loss', 'log_l1_loss', 'silog_loss']

"""Depth networks by name; `build_network` is the only way others make one."""

from __future__ import annotations

from typing import Any

from depth_node.training.networks.base import DepthNetwork
from depth_node.training.networks.small import SmallDepthNet

__all__ = ['NETWORKS', 'DepthNetwork', 'build_network']

NETWORKS: dict[str, type[DepthNetwork]] = {'small': SmallDepthNet}


def build_network(name: str, **options: Any) -> DepthNetwork:
    """Make a network by its name in the configuration.

    Raises:
        ValueError: no network has this name.
    """
    if name not in NETWORKS:
        raise ValueError(
            f'network {name!r} is not known; expected one of {sorted(NETWORKS)}; '
            'set `network.name` in the configuration'
        )
    return NETWORKS[name](**options)

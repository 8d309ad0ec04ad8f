"""What a model card says about a network, whatever file its weights are in."""

from __future__ import annotations

import math

from depth_node.model_card import METRIC_KINDS, InputSpec, OutputSpec
from depth_node.training.networks.base import DepthNetwork
from depth_node.training.networks.confidence import MEANING

INPUT_NAME = 'image'
OUTPUT_NAME = 'depth'
CONFIDENCE_NAME = 'confidence'


def graph_outputs(network: DepthNetwork) -> list[str]:
    """Name what `DepthNetwork.predict` gives, in its order."""
    return [OUTPUT_NAME, CONFIDENCE_NAME] if network.has_confidence else [OUTPUT_NAME]


def input_spec(network: DepthNetwork) -> InputSpec:
    """Describe the input: the picture as the camera gives it, normalised inside."""
    return InputSpec(
        name=INPUT_NAME, layout='uint8_nhwc', size_hw=network.size_hw, resize='stretch'
    )


def output_spec(
    network: DepthNetwork,
    *,
    range_m: tuple[float, float] | None = None,
    assumed_hfov_deg: float | None = None,
) -> OutputSpec:
    """Describe the output.

    Args:
        network: whose output it is.
        range_m: metric depths that training covered; None means what the network can return.
        assumed_hfov_deg: field of view taken for a camera without calibration, where the output
            is canonical; None means that of the canonical camera.
    """
    focal_px = network.canonical_focal_px
    if focal_px is not None and assumed_hfov_deg is None:
        half = network.size_hw[1] / 2 / focal_px
        assumed_hfov_deg = round(math.degrees(2 * math.atan(half)), 1)
    metric = network.output_kind in METRIC_KINDS
    return OutputSpec(
        name=OUTPUT_NAME,
        kind=network.output_kind,
        unit='m' if metric else 'none',
        range_m=(range_m or network.depth_range_m) if metric else None,
        canonical_focal_px=focal_px,
        assumed_hfov_deg=assumed_hfov_deg if focal_px is not None else None,
        confidence=CONFIDENCE_NAME if network.has_confidence else None,
        confidence_meaning=MEANING if network.has_confidence else None,
    )

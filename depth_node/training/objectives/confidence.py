"""Training of a confidence head beside a finished network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from depth_node.training import confidence_calibration as calibration
from depth_node.training.losses.uncertainty import laplace_nll, scale_free_residual
from depth_node.training.networks.base import DepthNetwork
from depth_node.training.objectives.base import Batch, Objective, as_depth, resize_like, truth
from depth_node.training.registry import OptionError
import torch


class Confidence(Objective):
    """Likelihood of the scale-free error under the width that the head predicts.

    After every validation the confidence is calibrated on the validation frames, so that each
    checkpoint holds the calibration of its own weights. The scores are those of the frames: `nll`
    is what training lowers; `calibration` (expected calibration error), `log_loss` and `right`
    (share of pixels within 10 %) come with the fit.
    """

    monitor = 'nll'
    starts_from_weights = True

    def __init__(self) -> None:
        """Start without counts."""
        super().__init__()
        self._counts: torch.Tensor | None = None

    def check(self, network: DepthNetwork) -> None:
        """See `Objective.check`.

        Raises:
            OptionError: the network has no confidence head.
        """
        if not network.has_confidence:
            raise OptionError(
                'objective confidence trains the confidence head, which this network does not '
                'have: network small with network.options.confidence=true does'
            )

    def losses(self, network: DepthNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """See `Objective.losses`."""
        log_spread, residual, valid = self._predicted(network, batch)
        return {'loss': laplace_nll(residual, log_spread, valid)}

    @torch.no_grad()
    def scores(self, network: DepthNetwork, batch: Batch) -> dict[str, torch.Tensor]:
        """See `Objective.scores`; counts for the calibration, too."""
        log_spread, residual, valid = self._predicted(network, batch)
        if self._counts is not None:
            self._counts += calibration.count(log_spread, residual, valid).to(self._counts)
        nll = [
            laplace_nll(residual[i : i + 1], log_spread[i : i + 1], valid[i : i + 1])
            if valid[i].any() else log_spread.new_tensor(torch.nan)
            for i in range(len(valid))
        ]  # fmt: skip
        return {'nll': torch.stack(nll)}

    def begin_validation(self) -> None:
        """See `Objective.begin_validation`."""
        self._counts = torch.zeros_like(calibration.NO_COUNTS)

    def end_validation(
        self,
        networks: Sequence[DepthNetwork],
        total: Callable[[torch.Tensor], torch.Tensor],
    ) -> dict[str, float]:
        """See `Objective.end_validation`: calibrates."""
        if self._counts is None:
            return {}
        found = calibration.fit(total(self._counts))
        self._counts = None
        if found is None:
            return {}
        for network in networks:
            assert network.confidence_head is not None
            network.confidence_head.calibrate(found.slope, found.offset)
        return {
            'calibration': found.error, 'log_loss': found.log_loss, 'right': found.right,
            'slope': found.slope, 'offset': found.offset,
        }  # fmt: skip

    @staticmethod
    def _predicted(
        network: DepthNetwork, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return log b, the scale-free residual and `valid` at the truth's size."""
        rgb = network.normalise(batch['rgb']).contiguous(memory_format=torch.channels_last)
        outputs = network.outputs(rgb)
        target, valid = truth(network, batch)
        with torch.no_grad():
            depth = as_depth(outputs['prediction'].float(), network.output_kind)
            residual = scale_free_residual(resize_like(depth, target), target, valid)
        return resize_like(outputs['log_spread'].float(), target), residual, valid

"""A trained network in torch behind the Backend protocol: what is measured before an export.

The same `DepthPipeline` runs it as any ONNX file, so a checkpoint's scores are those of the file
that it will become.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depth_node.backends import BackendError, output_names
from depth_node.backends._base import OnnxBackend, default_threads
from depth_node.export.onnx import ImageToDepth
from depth_node.model_card import FileSpec, InputSpec, ModelCard, file_sha256
from depth_node.training.networks.base import DepthNetwork
from depth_node.training.networks.card import INPUT_NAME, input_spec, output_spec
import numpy as np
from numpy.typing import NDArray
import torch

LAYOUTS = ('uint8_nhwc', 'float32_nchw')


def card_of(network: DepthNetwork, checkpoint: Path, layout: str = 'uint8_nhwc') -> ModelCard:
    """Describe a network in memory, as the card of its export would.

    Args:
        network: what the card describes.
        checkpoint: where its weights come from; the card's file and hash.
        layout: of the input, one of LAYOUTS; with `float32_nchw` the pipeline normalises.

    Returns:
        A card without reference statistics, which no file stands beside.

    Raises:
        ValueError: an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f'layout {layout!r}, expected one of {", ".join(LAYOUTS)}')
    inputs = input_spec(network)
    if layout == 'float32_nchw':
        inputs = InputSpec(
            name=INPUT_NAME, layout=layout, mean=network.mean, std=network.std,
            size_hw=network.size_hw, resize=inputs.resize,
        )  # fmt: skip
    folder = checkpoint.absolute().parent.name
    return ModelCard(
        name=f'{folder}/{checkpoint.stem}' if folder else checkpoint.stem,
        path=checkpoint.absolute().with_suffix('.yaml'),
        licence='unknown',
        input=inputs,
        output=output_spec(network, range_m=None, assumed_hfov_deg=None),
        precisions={'fp32': FileSpec(checkpoint.absolute(), file_sha256(checkpoint))},
    )


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`.

    Raises:
        BackendError: an unknown name, or no CUDA device here.
    """
    there = torch.cuda.is_available()
    if name not in ('auto', 'cpu', 'cuda'):
        raise BackendError(f'device {name!r}: known are auto, cpu, cuda')
    if name == 'cuda' and not there:
        raise BackendError('device cuda: torch finds none here; use cpu')
    return torch.device('cuda' if there and name != 'cpu' else 'cpu')


class TorchBackend(OnnxBackend):
    """A network in evaluation mode, FP32."""

    def __init__(
        self,
        network: DepthNetwork,
        card: ModelCard,
        *,
        device: str = 'auto',
        threads: int | None = None,
    ) -> None:
        """Take a network over.

        Args:
            network: put into evaluation mode and moved to the device.
            card: of `card_of`; its layout says what `run` takes.
            device: auto, cpu or cuda.
            threads: torch's CPU threads, for the whole process; None: the physical cores, at
                most 4.

        Raises:
            BackendError: no such device.
        """
        chosen = choose_device(device)
        on_gpu = chosen.type == 'cuda'
        count = threads or default_threads()
        if not on_gpu:
            torch.set_num_threads(count)
        super().__init__(
            'torch', card, 'fp32', threads=0 if on_gpu else count, version=torch.__version__,
            device=torch.cuda.get_device_name(chosen) if on_gpu else 'CPU',
        )  # fmt: skip
        self._chosen = chosen
        self._network: ImageToDepth | None = ImageToDepth(network).eval().to(chosen)

    def _infer(self, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        assert self._network is not None
        try:
            with torch.inference_mode():
                # a copy: torch refuses read-only arrays, and the pipeline reuses its own
                found = self._run(torch.tensor(batch, device=self._chosen))
        except RuntimeError as error:
            raise BackendError(f'torch: {error}') from error
        names = output_names(self.card)
        return {name: each.float().cpu().numpy()
                for name, each in zip(names, found, strict=True)}

    def _run(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert self._network is not None
        if self.card.input.layout != 'uint8_nhwc':
            return self._network.network.predict(batch)
        return self._network.predict(batch)

    def _release(self) -> None:
        self._network = None

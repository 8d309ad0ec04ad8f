"""Average the weights of checkpoints of one network: between two runs often lies a better one.

    python scripts/average_weights.py runs/a/last.ckpt runs/b/last.ckpt --out average.ckpt

The result starts a stage (`depth-node train --init`) or is exported; it cannot be resumed. Runs
must be related, the later begun from the weights of the earlier: the mean of strangers is no
network. A run that began from an ONNX file is averaged with its own start.ckpt: batch norms are
unfolded anew each time. Needs the extra `train`.

Source: Wortsman et al. 2022, Model soups, arXiv:2203.05482 (uniform soup).
"""

from __future__ import annotations

import argparse
from pathlib import Path
import sys
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from depth_node.training.checkpoints import CheckpointError, read_checkpoint
import torch


def average(paths: list[Path]) -> dict[str, Any]:
    """Return a checkpoint with the mean of every weight, all else as in the last one.

    Counts (whole numbers) are those of the last, too. A file of weights alone, as
    `depth-node train --init FILE.onnx` leaves in start.ckpt, has been averaged already.

    Raises:
        CheckpointError: unreadable, or of different networks.
    """
    read = [read_checkpoint(path) for path in paths]
    last = read[-1]
    network = last['hyper_parameters']['config']['network']
    result = {key: last[key] for key in ('hyper_parameters', 'epoch', 'global_step',
                                         'pytorch-lightning_version')}
    for path, checkpoint in zip(paths, read, strict=True):
        found = checkpoint['hyper_parameters']['config']['network']
        if found != network:
            raise CheckpointError(f'{path}: of the network {found}, {paths[-1]} of {network}; '
                                  'expected the same')
        if 'ema' in last and 'global_step' not in checkpoint:
            checkpoint['ema'] = {key.removeprefix('network.'): value
                                 for key, value in checkpoint['state_dict'].items()}
        if ('ema' in checkpoint) != ('ema' in last):
            raise CheckpointError(f'{path} and {paths[-1]}: one of them has averaged weights '
                                  '(optim.ema_decay), the other has none')
    for part in ('state_dict', 'ema'):
        if part in last:
            result[part] = {
                key: torch.stack([item[part][key].double() for item in read]).mean(0).to(value)
                if value.is_floating_point() else value for key, value in last[part].items()}
    return result


def main(arguments: list[str] | None = None) -> int:
    """Write the average."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoints', type=Path, nargs='+', metavar='CHECKPOINT',
                        help='two or more; counters and settings come from the last')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE')
    args = parser.parse_args(arguments)
    if len(args.checkpoints) < 2:
        parser.error('one checkpoint has no average: give two or more')
    try:
        result = average(args.checkpoints)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(result, args.out)
    print(f'{args.out}: the mean of {len(args.checkpoints)} checkpoints')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())

"""Measure every backend of this machine and keep the figures: docs/results/backends-<name>.json.

A thin layer over `depth-node bench`, whose options it passes on:

    python benchmarks/backends.py --name robot-orin -- --size 1280x720
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import platform
import subprocess
import sys

RESULTS = Path(__file__).resolve().parents[1] / 'docs' / 'results'


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--name', default=platform.machine(),
                        help="of the machine, for the file's name (its architecture)")
    parser.add_argument('--out', type=Path, default=RESULTS, help='folder (docs/results)')
    parser.add_argument('options', nargs='*', help='after --: options of depth-node bench')
    args = parser.parse_args()
    result = subprocess.run(
        [sys.executable, '-m', 'depth_node.cli', 'bench', '--json', *args.options],
        stdout=subprocess.PIPE, text=True)
    if result.returncode:
        return result.returncode
    document = json.loads(result.stdout)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f'backends-{args.name}.json'
    path.write_text(json.dumps(document, indent=2) + '\n', encoding='utf-8')
    for row in document['results']:
        network, stages = row['network_ms'], row['pipeline_ms']
        print(f'{row["backend"]:<18}{row["precision"]:<6}network p50 {network["p50"]:7.2f} '
              f'p99 {network["p99"]:7.2f} ms   pipeline p50 {stages["total"]["p50"]:7.2f} '
              f'p99 {stages["total"]["p99"]:7.2f} ms')
    print(path)
    return 0


if __name__ == '__main__':
    sys.exit(main())

"""The process that renders the demo clip: `python -m ... <settings as JSON> <scene>`."""

from __future__ import annotations

import json
import os
from pathlib import Path
import sys

FRAMES = 60


def main(argv: list[str]) -> int:
    """Render the clip and print 'frame N' after each frame."""
    from depth_node.synthesis import clip, worker
    from depth_node.synthesis.blender import RenderError

    settings, scene = json.loads(argv[0]), int(argv[1])
    report = os.fdopen(os.dup(1), 'w')
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Blender's own lines
    try:
        stage, assets = worker.make_stage(settings)
        clip.render_clip(
            stage, assets, Path(settings['out']), seed=settings['seed'], scene=scene,
            frames=FRAMES, progress=lambda done: print(f'frame {done}', file=report, flush=True))
    except (ValueError, RenderError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))

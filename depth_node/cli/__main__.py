"""`python -m depth_node.cli`, where the command `depth-node` is not on the path."""

import sys

from depth_node.cli import main

if __name__ == '__main__':
    sys.exit(main())

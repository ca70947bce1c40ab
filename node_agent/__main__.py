"""``python -m node_agent``: the node's command line."""

from __future__ import annotations

import sys

from node_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())

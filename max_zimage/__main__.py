"""`python -m max_zimage`: the command `max-zimage`."""

import sys

from max_zimage.cli.main import start

if __name__ == "__main__":
    sys.exit(start())

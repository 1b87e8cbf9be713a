"""Entry point of `python -m ssljax.cli`."""

import sys

from ssljax.cli import main

if __name__ == "__main__":
    sys.exit(main())

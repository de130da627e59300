"""`python -m stepladder`."""

import sys

from stepladder.cli import main

if __name__ == "__main__":
    sys.exit(main())

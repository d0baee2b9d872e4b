"""``python -m latprune``: the command line, for where the script ``latprune`` is not on the path."""

import sys

from latprune.cli import main

if __name__ == "__main__":
    sys.exit(main())

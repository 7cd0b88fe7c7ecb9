"""``python -m anew``: the command line, as torchrun starts it."""

import sys

from anew.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

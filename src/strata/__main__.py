"""``python -m strata``: the same command as ``strata``."""

import sys

from strata.cli import main

if __name__ == "__main__":
    sys.exit(main())

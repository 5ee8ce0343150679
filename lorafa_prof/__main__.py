"""`python -m lorafa_prof`: the same as `lorafa-prof`."""

import sys

from lorafa_prof.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m debiasbench` is the console script `debiasbench`."""

import sys

from debiasbench.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""Run a grid of debiasing methods x datasets x seeds: `python run_benchmark.py --help`."""

import sys

from debiasbench.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))

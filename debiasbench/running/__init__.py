"""Run cells in worker processes, and show progress."""

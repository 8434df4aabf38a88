"""Cells to worker processes, and what a person sees meanwhile."""

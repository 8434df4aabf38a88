"""Predictions, metrics, and the rules that select an epoch."""

"""User-fixable errors. They are printed as one message, without a traceback."""


class BenchmarkError(ValueError):
    """A mistake in what was asked or given: says what is wrong, what was given, what is allowed, what to do."""


class DivergedError(RuntimeError):
    """A training produced values that are not finite; the cell is recorded as failed and the grid goes on."""

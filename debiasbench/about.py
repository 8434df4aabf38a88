"""Version of the suite, and of its protocol."""

__version__ = "0.1.0"
# Raised when evaluation, sampling or randomness change so that numbers move: part of every cell's identity.
PROTOCOL_VERSION = 1

"""Data: decoded, generated, cached, augmented; what dataset files build on."""

"""Data: decoding, generation, cache and augmentation, which dataset files build on."""

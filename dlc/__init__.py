"""A deep-learning course as running research code: pure Flax models, losses, steps; experiments that measure claims."""

__version__ = "0.1.0"

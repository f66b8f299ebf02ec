"""The lecture's first networks, on handwritten digits."""

"""Linear readings of concepts from activations: arrays only, no torch."""

"""Features of patches: activations of a network, stores, files of embeddings, pixel statistics."""

"""Networks: opening them, naming their layers, reading their activations."""

"""Does the network use a concept? Gradients of a logit at a layer, taken along concept vectors."""

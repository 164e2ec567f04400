"""Guided training: heads that encourage or discourage concepts, their weights, and the loop."""

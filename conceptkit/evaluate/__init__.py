"""The ruler that probe and guide share: arrays in, numbers out."""

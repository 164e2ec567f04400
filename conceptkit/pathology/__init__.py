"""Slides, stain, nuclei and the measures that turn pixels into concepts."""

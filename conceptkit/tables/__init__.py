"""The patch table and the study file."""

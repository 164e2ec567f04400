"""Atomic writes, checks of HDF5 files before they are read, and matrices in files."""

"""Files that appear whole, HDF5 files that can be trusted to end, matrices that lie in a file."""

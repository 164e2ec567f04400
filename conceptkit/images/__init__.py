"""Image files and slides as upright 8-bit RGB on white."""

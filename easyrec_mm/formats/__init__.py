"""Groups in files: one module per format, and the rules for valid groups."""

"""Groups in files: one file for each format, and the rules of a good group."""

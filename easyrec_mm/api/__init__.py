"""The Python API: what a notebook calls, and what the commands call; see docs/api.md."""

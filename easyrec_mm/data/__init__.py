"""From files to batches: lines are parsed and checked, features transformed, pictures decoded."""

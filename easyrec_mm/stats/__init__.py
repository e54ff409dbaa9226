"""The command `stats`: a report on the contents of an input, for a person who decides how to train with it."""

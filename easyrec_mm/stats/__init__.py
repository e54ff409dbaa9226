"""The command `stats`: what an input holds, for a person who decides what to train with it."""

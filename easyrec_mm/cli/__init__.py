"""The command line: the flags, actions and output of each command."""

"""The command line: what each command takes, runs and prints."""

"""The command line: one file per command, thin; each parses, calls, prints."""

"""Measuring the ladder: one process per setting and trial, parity before speed, raw times into a record."""

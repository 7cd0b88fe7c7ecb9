"""Passes over MIL functions, one a file, each from a function to a function."""

"""Export of a module to a file."""

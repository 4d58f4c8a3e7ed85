"""From a module to a file."""

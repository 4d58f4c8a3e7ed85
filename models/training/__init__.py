"""Training: everything that takes gradient steps."""

"""Runs network files and measures their latency."""

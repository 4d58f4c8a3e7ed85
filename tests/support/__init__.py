"""Helpers that several tests use: small networks, running servers and examples."""

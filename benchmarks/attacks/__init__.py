"""Attacks on a running server, each with what it did before and what it does now."""

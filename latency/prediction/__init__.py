"""Pricing a structure without running it."""

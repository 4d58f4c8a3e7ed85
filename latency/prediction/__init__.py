"""Predicts the latency of a structure without running it."""

"""Benchmarks that show which models and files vitfit accepts."""

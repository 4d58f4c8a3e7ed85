"""Imports all modules with rules. The import registers the rules with the tracer."""

from models.graph.tracing import layout, norms, products

__all__ = ["layout", "norms", "products"]

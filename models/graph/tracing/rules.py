"""All rules. Importing them makes them known to the tracer."""

from models.graph.tracing import layout, norms, products

__all__ = ["layout", "norms", "products"]

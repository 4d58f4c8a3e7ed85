"""All rules. Importing them makes them known to the tracer."""

from models.graph import layout, norms, products

__all__ = ["layout", "norms", "products"]

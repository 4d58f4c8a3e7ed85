"""Follows sizes through a graph, to find the dims that must be cut together."""

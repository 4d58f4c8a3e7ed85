"""Finds the token axes in a graph, and adds token reductions to the graph."""

"""Reads and prunes any transformer as a graph of PyTorch operators: what its sizes consist of, which of them count
heads and neurons, and how these are cut. No code in this package names an architecture."""

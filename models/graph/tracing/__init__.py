"""Following sizes through a graph: which dims belong together."""

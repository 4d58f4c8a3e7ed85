"""Where tokens travel in a graph, and how some of them leave it."""

"""What to remove: policies, importance and the Gaussian-process search."""

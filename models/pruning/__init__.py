"""Pruning of weights, the modules of a pruned network, token reduction, and closed-form recovery."""

"""Cutting, the modules that stand in a pruned network, token reduction, and the closed-form recovery."""

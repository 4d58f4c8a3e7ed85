"""The optimisation itself: propose, decode onto the budget, score, repeat."""

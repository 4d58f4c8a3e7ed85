"""Comparison of vitfit's methods with the usual alternatives, on one model, one data set and the same budgets.

    python -m benchmarks.comparison --data scenes.npz --output build/comparison

The script stores each row (method, budget and seed) in files, and does not run a finished row again. One fitted latency
table predicts the latency of all rows. At the end, the script measures all files again in one interleaved run.
"""

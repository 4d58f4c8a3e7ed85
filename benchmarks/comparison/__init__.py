"""Every method and what people take instead, on one model, one data set and the same budgets.

    python -m benchmarks.comparison --data scenes.npz --output build/comparison

Rows (method, budget, seed) are files and finished ones are not run again. All rows are priced by the same fitted latency
table; in the end all files are timed again in one interleaved run.
"""

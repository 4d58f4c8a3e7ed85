"""Loads an uploaded model folder as a network. No other folder of `models` imports this one."""

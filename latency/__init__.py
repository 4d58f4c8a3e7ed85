"""How long a network takes: devices, measurements and predictions.

This package imports the client package `vitfit` on purpose: the agent of a remote device measures with the same code.
"""

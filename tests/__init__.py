"""The tests, with one folder for each top-level package.

This file makes sure that Python does not take `tests.models` for the package `models`.
"""

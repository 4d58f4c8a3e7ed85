"""Tests, one folder for each room. (With this file `tests.models` is never taken for the package `models`.)"""

"""Modules for every part of the service: errors, settings, logs, the data folder, processes, retries, clocks."""

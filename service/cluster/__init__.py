"""Trials and jobs on a Ray cluster. This code runs in separate processes; the web process never imports it."""

"""Trials and jobs on a Ray cluster. It runs in processes of its own; the web process never imports it."""

"""Uploads that no honest user sends, made from a seed."""

"""Facts in, text and HTML out."""

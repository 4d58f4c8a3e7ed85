"""Judging a network: metrics, parity with its file, sensitivity, and which patches it keeps."""

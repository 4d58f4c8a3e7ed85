"""Evaluates a network: metrics, parity with its exported file, sensitivity to quantisation, and kept patches."""

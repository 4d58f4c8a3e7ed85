"""Claim: a roofline of six numbers, fitted to six published latencies of a phone core, predicts six others of that core.

    python -m benchmarks.profiles                     writes latency/profiles/*.json and prints the table
    python -m benchmarks.profiles --only pixel-4-large-fp32 --output build/profiles

published.json holds the published latencies with their source. For each core and precision half of the models are used to fit,
the others to check: DeiT, ViT and Swin, 1.3 to 56 G multiply-accumulates, from 50 to 577 tokens. The profile's interval is what
the checks show it to be.
"""

"""Claim: a roofline of six numbers, fitted to six published latencies of a phone core, predicts six others of it.

    python -m benchmarks.profiles                     writes latency/devices/profiles/*.json and prints the table
    python -m benchmarks.profiles --only pixel-4-large-fp32 --output build/profiles

published.json holds the published latencies with their sources. For each core and precision, the script fits the
roofline to half of the models and checks it on the other half. The models are DeiT, ViT and Swin, with 1.3 to 56 G
multiply-accumulates and 50 to 577 tokens. The largest error of the checks becomes the interval of the profile (at least
5 %).
"""

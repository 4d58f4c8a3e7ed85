"""Statistics of a dense network on calibration images.

Rankings and the recovery read nothing else about its activations.
"""

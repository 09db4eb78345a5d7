"""Measurements of speed and memory: ratios of two things in one run, medians of interleaved repeats."""

"""Sparse routing trained by Goodness, a meta-learning signal taken from per-token gradients. Knows torch alone."""

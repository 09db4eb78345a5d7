"""Declarative experiments, one question each, and the benchmarks."""

"""python -m experiments.benchmarks"""

from experiments.benchmarks.cli import bench

bench(prog_name="python -m experiments.benchmarks")

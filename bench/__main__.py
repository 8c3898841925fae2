"""`python -m bench` is the benchmark of the hot path."""

from bench.overhead import main

main()

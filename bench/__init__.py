"""Benchmarks: `python -m bench` lists the suites, `python -m bench NAME` runs one beside every peer that is installed.

A suite is a file in `suites/`, a peer one in `peers/` with a line in `peers/__init__.py`. See docs/benchmarks.md.
"""

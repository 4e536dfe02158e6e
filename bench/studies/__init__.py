"""Simulation studies: statistical claims measured at length. `python -m bench.studies.NAME --help` tells of each."""

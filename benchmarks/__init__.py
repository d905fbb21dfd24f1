"""How fast liverdis is, and against what: `python -m benchmarks --help`, in a checkout after `make venv`."""

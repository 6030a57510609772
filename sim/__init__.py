"""The simulator: many nodes in one process, on virtual time, with faults, from one seed. See `world.py`."""

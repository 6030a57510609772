"""The peers: other systems under the same load, each in a process of its own virtual environment (`envs.py`)."""

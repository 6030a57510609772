"""The benchmark of the repository: `python -m bench` from its root. See `__main__.py`. Not part of the package."""

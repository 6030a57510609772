"""Nodes: who owns which run, when turns are taken, how they are committed, and what happens after that."""

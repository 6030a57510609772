"""Slow machines must not fail a property: what an example may take is bounded by the run, not by each example."""

from hypothesis import HealthCheck, settings

settings.register_profile("outlast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("outlast")

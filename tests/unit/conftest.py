"""What all unit tests share: how hypothesis looks for counter-examples."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadline and no word about slowness: a test says whether something holds, never how fast the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

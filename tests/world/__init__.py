"""The simulated world: endpoints, their system and their telemetry on virtual time, with everything that can go wrong."""

"""The load to come: what was asked of an endpoint, slot by slot, and what the same hours of other days say of the next ones."""

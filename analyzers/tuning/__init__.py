"""The pure part of `flyball tune`: what is tried next, whether an objective holds, what an engine promises of shapes not yet tried."""

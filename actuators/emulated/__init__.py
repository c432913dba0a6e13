"""Emulated endpoints for the demo and for tests: real HTTP servers whose timing is modelled. No model runs here."""

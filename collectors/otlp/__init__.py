"""OTLP over HTTP: metrics and request spans that applications and model servers push."""

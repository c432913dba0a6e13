"""A Prometheus-compatible store (Prometheus, VictoriaMetrics, Mimir, Thanos) as the source of a whole fleet."""

"""Autoscalers beside a clairvoyant, on the endpoint's own traffic: what each would have cost, missed and flapped, and how it is best set."""

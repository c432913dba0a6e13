"""A strict stand-in for a Kubernetes API server with its controllers, on loopback and on any clock.

It answers as a real API server 1.36 did (``../shared/data/recorded/k8s``, replayed in ``test_recorded.py``): conflicts, invalid fields,
unknown media types, dry runs, field managers. Deployments roll, an HPA moves the count between its bounds, Argo CD writes back.
"""

from tests.fakes.kubernetes.cluster import Cluster, manifest
from tests.fakes.kubernetes.server import FakeKubernetes

__all__ = ["Cluster", "FakeKubernetes", "manifest"]

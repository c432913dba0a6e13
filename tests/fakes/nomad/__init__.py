"""A strict stand-in for a Nomad agent: indices, versions, evaluations and deployments over time; its answers are those of a real Nomad 1.1.2."""

from tests.fakes.nomad.agent import FakeNomad
from tests.fakes.nomad.cluster import NomadCluster, service_job

__all__ = ["FakeNomad", "NomadCluster", "service_job"]

"""The system ``azure-maas``: serverless endpoints of models as a service, which have no capacity to change."""

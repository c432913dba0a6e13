"""The system ``azure-ml``: Azure Machine Learning's managed online endpoints."""

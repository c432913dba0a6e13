"""SageMaker real-time endpoints: instances, weights, instance type, and the bounds of Application Auto Scaling."""

"""Amazon Web Services: SageMaker endpoints, EC2 instances and groups, Bedrock's models, and CloudWatch."""

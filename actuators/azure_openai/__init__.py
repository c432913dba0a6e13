"""The system ``azure-openai``: Azure OpenAI and Foundry model deployments."""

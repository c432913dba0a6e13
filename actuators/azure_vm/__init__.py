"""The system ``azure-vm``: virtual machines, scale sets and AKS node pools of one's own cloud."""

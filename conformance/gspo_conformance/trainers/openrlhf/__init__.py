"""OpenRLHF: `openrlhf.models.loss.PolicyLoss`."""

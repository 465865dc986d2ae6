"""TRL: `GRPOTrainer._compute_loss`."""

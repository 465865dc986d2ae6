"""ms-swift: `GRPOTrainer._compute_loss_and_metrics` and `compute_advantages`."""

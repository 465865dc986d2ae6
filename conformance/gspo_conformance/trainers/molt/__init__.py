"""Molt: `PolicyTrainer.training_step` under the arguments that its command line accepts."""

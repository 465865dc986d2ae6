"""Unsloth: `grpo_compute_loss` of unsloth-zoo, which takes the place of TRL's loss."""

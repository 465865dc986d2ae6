"""EasyDeL: `grpo_step`, the training step that its GSPO and GRPO trainers share, on JAX."""

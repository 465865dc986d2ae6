"""mlx-lm-lora: `grpo_loss` and the advantages of its GRPO trainer, on MLX."""

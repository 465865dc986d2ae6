"""TextPolicy: `algorithms.gspo` and `algorithms.grpo`, and its `Trainer` as it calls them, on MLX."""

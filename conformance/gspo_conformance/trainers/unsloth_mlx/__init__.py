"""Unsloth on Apple's MLX: `make_grpo_loss_fn` of unsloth-zoo, a trainer of its own beside the one on PyTorch."""

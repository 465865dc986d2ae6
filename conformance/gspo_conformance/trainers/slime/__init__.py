"""slime: `loss_function` of its Megatron backend, from a checkout."""

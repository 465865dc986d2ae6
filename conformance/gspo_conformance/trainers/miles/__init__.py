"""Miles: `loss_function` of its training backends, from a checkout."""

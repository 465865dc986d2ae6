"""Tunix: `tunix.rl.algo_core.grpo_loss_fn`, its advantage estimators and its KL estimates, on JAX."""

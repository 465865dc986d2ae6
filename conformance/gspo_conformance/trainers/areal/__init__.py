"""AReaL: `ppo_actor_loss_fn`, `sapo_loss_fn`, `Normalization`, `KLEstimator` and `PPOActor.compute_advantages`."""

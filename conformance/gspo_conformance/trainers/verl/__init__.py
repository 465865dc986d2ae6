"""verl: `verl.workers.utils.losses.ppo_loss` and `verl.trainer.ppo.core_algos`."""

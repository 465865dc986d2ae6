"""StateSet Agents: `training.objectives`, the losses and advantages of its native trainers."""

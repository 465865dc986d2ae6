"""ROLL: `ActorWorker.loss_func` of the RLVR pipeline and `roll.utils.functionals`."""

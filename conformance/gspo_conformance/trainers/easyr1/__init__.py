"""EasyR1: `DataParallelPPOActor.update_policy` and `verl.trainer`, from a checkout."""

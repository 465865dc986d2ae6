"""SkyRL: `RayPPOTrainer` on the driver, `PolicyWorkerBase._forward_backward_micro` in the worker."""

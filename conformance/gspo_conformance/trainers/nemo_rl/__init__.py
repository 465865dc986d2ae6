"""NeMo-RL: `ClippedPGLossFn` and its advantage estimators, from a checkout."""

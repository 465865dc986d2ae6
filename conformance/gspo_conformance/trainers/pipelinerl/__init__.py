"""PipelineRL: `rl_step` of its trainer, from a checkout."""

"""Cosmos-RL: `compute_loss` under a `Config` that its validators accept."""

"""Loaded by verl through its entry-point group `verl.plugins`: registers `loss_mode=gspo_core` in every worker."""

from importlib.util import find_spec

from .verl import register

if find_spec("verl") is not None:
    register()

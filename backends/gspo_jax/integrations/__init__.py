"""`gspo_jax` inside trainers. Each module needs its trainer and nothing else; `gspo_jax` imports none of them."""

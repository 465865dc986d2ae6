"""AgileRL: the policy losses of its `GRPO` agent, GSPO among them."""

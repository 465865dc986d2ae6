"""GSPO in verl: `loss_mode=gspo_core` beside verl's own `gspo`, called as verl's workers call them.

pip install 'gspo[torch]' verl==0.9.1
python examples/verl_loss.py
"""

from __future__ import annotations

import argparse

import torch

try:
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import ActorConfig
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__doc__}\n{missing}") from None


def main() -> None:
    torch.manual_seed(0)
    mask = torch.arange(8) < torch.tensor([8, 3, 5, 1])[:, None]
    old = -torch.rand(4, 8)
    new = old + 3e-4 * torch.randn(4, 8)
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])[:, None] * mask
    for name, mode in (("gspo_core", "seq-mean-token-mean"), ("gspo", "seq-mean-token-mean"), ("gspo", "token-mean")):
        config = ActorConfig(
            strategy="fsdp",
            rollout_n=4,
            ppo_micro_batch_size_per_gpu=4,
            clip_ratio_low=3e-4,
            clip_ratio_high=4e-4,
            loss_agg_mode=mode,
        )
        logp = new.clone().requires_grad_()
        loss, metrics = get_policy_loss_fn(name)(
            old_log_prob=old,
            log_prob=logp,
            advantages=advantages,
            response_mask=mask,
            loss_agg_mode=mode,
            config=config,
        )
        loss.backward()
        print(
            f"{name:9} {mode:20} loss {loss.item():+.6f}, gradient of the four responses "
            f"{[round(value, 4) for value in logp.grad.sum(1).tolist()]}, clipped {metrics['actor/pg_clipfrac']:.2f}"
        )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()

"""GSPO of the paper in Liger-Kernel: `gspo lint examples/configs/liger.py --dialect liger`."""

from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

loss = LigerFusedLinearGRPOLoss(
    importance_sampling_level="sequence",
    loss_type="grpo",
    epsilon_low=3e-4,
    epsilon_high=4e-4,
    beta=0.0,
    use_ref_model=False,
)

"""Liger-Kernel: `liger_kernel.chunked_loss.LigerFusedLinearGRPOLoss`, from hidden states and the weights of a head."""

"""Trinity-RFT: `TrinityPolicyLoss` under the configuration that its validator completes."""

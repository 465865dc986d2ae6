# GSPO of the paper in mlx-lm-lora: gspo lint examples/configs/mlx_lm_lora.sh --dialect mlx_lm_lora
# What remains no setting mends: a rollout gives one update, so that the ratio is 1. As flags, because in a file behind
# --config the ratio, the range of the clip below and the aggregation are not read.
mlx_lm_lora.train \
  --model Qwen/Qwen3-0.6B \
  --train \
  --train-mode grpo \
  --importance-sampling-level sequence \
  --grpo-loss-type grpo \
  --epsilon 3e-4 \
  --epsilon-high 4e-4 \
  --beta 0.0 \
  --group-size 8

# GSPO of the paper in radixark/miles, its arguments as a run script holds them: gspo lint examples/configs/miles.sh --dialect miles
GRPO_ARGS=(
   --advantage-estimator gspo # the mean over responses of the mean over tokens, as it comes
   --eps-clip 3e-4
   --eps-clip-high 4e-4
   --entropy-coef 0.0
)
ROLLOUT_ARGS=(
   --rollout-batch-size 64
   --n-samples-per-prompt 8
   --num-steps-per-rollout 4
)

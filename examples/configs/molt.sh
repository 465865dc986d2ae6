# As near to GSPO of the paper as Molt's arguments come: gspo lint examples/configs/molt.sh --dialect molt
# Its loss is the mean over all tokens, and no argument changes that: response i weighs G|y_i|/Σ|y| instead of 1. That finding
# remains, and that of the 1e-9 which its grpo adds to the standard deviation.
python3 -m molt.cli.train_rl_ray \
   --actor.loss_mode gspo \
   --actor.eps_clip_low_high 3e-4 4e-4 \
   --algo.advantage.estimator grpo \
   --algo.kl.init_coef 0 \
   --rollout.batch_size 64 \
   --rollout.n_samples_per_prompt 8 \
   --train.batch_size 128

"""A rollout whose prompts and rewards are given, as `_make_batch_data` generates, scores and filters one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from ...tensors import NumPyArray


class Rows:
    """What the driver asks of its `DataProto`: one row a prompt, then one a response."""

    def __init__(self, groups: NumPyArray, rewards: NumPyArray) -> None:
        self.names, self.prompts = np.unique(groups, return_inverse=True)
        self.rewards = rewards.tolist()
        self.batch: Any = [None] * len(self.names)
        self.non_tensor_batch: dict[str, Any] = {}
        self.chosen: list[int] = []

    def kept(self, trainer: Any, low: float, high: float) -> NumPyArray:
        """Which responses the filter keeps."""
        keep = np.zeros(len(self.rewards), bool)
        trainer.DataProto = SimpleNamespace(from_single_dict=lambda *_, **__: self)
        trainer.ray = SimpleNamespace(get=lambda given: given)
        trainer.reduce_metrics = lambda metrics: metrics
        try:
            trainer.RayPPOTrainer._make_batch_data(self._driver(low, high), {})
        except RuntimeError as error:
            if "No sample is kept" not in str(error):
                raise
        keep[self.chosen] = True
        return keep

    def _driver(self, low: float, high: float) -> Any:
        """The trainer, whose reward function knows the rewards."""
        algorithm = {"adv_estimator": "grpo", "online_filtering": True, "filter_key": "overall"}
        config = SimpleNamespace(
            data=SimpleNamespace(min_pixels=0, max_pixels=0, video_fps=0, rollout_batch_size=0),
            algorithm=SimpleNamespace(**algorithm, filter_low=low, filter_high=high),
            worker=SimpleNamespace(rollout=SimpleNamespace(n=1)),
        )
        scored = SimpleNamespace(remote=lambda _: (None, {"overall": self.rewards}))
        return SimpleNamespace(
            config=config,
            data_iterator=iter([{}]),
            reward_fn=SimpleNamespace(compute_reward=scored),
            actor_rollout_ref_wg=SimpleNamespace(generate_sequences=lambda _: None),
        )

    def pop(self, **_: Any) -> None:
        """The prompts, which nothing here generates from."""

    def repeat(self, **_: Any) -> Rows:
        """A row a response: its prompt's name stands at each."""
        self.non_tensor_batch["uid"] = self.non_tensor_batch["uid"][self.prompts]
        self.batch = {}
        return self

    def union(self, _: Any) -> Rows:
        """Itself."""
        return self

    def __len__(self) -> int:
        return len(self.rewards)

    def __getitem__(self, rows: Any) -> Rows:
        if isinstance(rows, list):
            self.chosen = rows
        return self

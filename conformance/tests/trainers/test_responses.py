"""What the rooms of trainers with lists of responses share."""

from __future__ import annotations

import numpy as np
import torch

from gspo_conformance.target import Case
from gspo_conformance.trainers.responses import Beside


def test_a_mask_counts_nothing_behind_the_last_offset_of_a_packed_row() -> None:
    inputs = {
        "values": np.arange(5, dtype=np.float32),
        "offsets": np.array([0, 2, 3]),
        "mask": np.array([True, False, True, True, True]),
    }

    def mean(values: torch.Tensor, mask: torch.Tensor, **options: object) -> torch.Tensor:
        return torch.full_like(values, float((values * mask).sum() / mask.sum()))

    case = Case("whiten", {"center": True, "ddof": 1, "eps": 1e-8}, inputs)
    assert Beside("both").whiten(mean, case)["values"].tolist() == [1, 0, 1, 0, 0]

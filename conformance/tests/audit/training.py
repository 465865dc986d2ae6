"""A small training run of our own, recorded: two data-parallel ranks with 3 and 5 responses, two micro-batches each, three
updates per rollout, a sampler of lower precision. `temperature` and `stale` make two real mistakes in the loop.
"""

from __future__ import annotations

from pathlib import Path

import torch

import gspo_torch as gspo
from gspo_torch.record import TorchRecorder

VOCABULARY, LONGEST, GROUPS, SIZE = 24, 14, 2, 4
RANKS = ((slice(0, 2), slice(2, 3)), (slice(3, 6), slice(6, 8)))
CLIP = gspo.Clip(3e-3, 4e-3)
ADVANTAGES = {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6}


def train(
    path: Path,
    *,
    rollouts: int = 3,
    updates: int = 3,
    temperature: float = 1.0,
    stale: int | None = None,
    gradient: bool = False,
) -> None:
    """Records `rollouts` · `updates` optimiser steps. `temperature` is that of the old scoring alone; from rollout `stale` on the old policy is that of the rollout before."""
    torch.manual_seed(0)
    table = torch.nn.Parameter(0.8 * torch.randn(VOCABULARY, VOCABULARY))
    optimizer = torch.optim.Adam([table], lr=0.002)
    objective = gspo.Objective.gspo(CLIP)
    run = {"advantages": ADVANTAGES, "group_size": SIZE, "micro_batches": "sum", "rank_losses": "mean", "ranks": 2}
    ranks = [
        TorchRecorder(path, rank=rank, objective=objective.to_dict(), gradient=gradient, **run) for rank in range(2)
    ]
    before = table.detach().clone()
    for rollout in range(rollouts):
        tokens, mask = _sample(table.detach())
        old_policy = before if stale is not None and rollout >= stale else table.detach().clone()
        old = _score(old_policy, tokens) if temperature == 1 else _score(old_policy / temperature, tokens)
        sampler = _score(table.detach().bfloat16().float(), tokens)
        before = table.detach().clone()
        rewards = _rewards(tokens, mask)
        groups = torch.arange(GROUPS * SIZE) // SIZE + 10 * rollout
        advantages = gspo.group_advantages(rewards, groups, **ADVANTAGES)
        for recorder, parts in zip(ranks, RANKS, strict=True):
            mine = slice(parts[0].start, parts[-1].stop)
            recorder.rollout(rewards=rewards[mine], groups=groups[mine], advantages=advantages[mine])
        for _ in range(updates):
            for recorder, parts in zip(ranks, RANKS, strict=True):
                _rank(recorder, parts, table, tokens, mask, old, sampler, advantages, rewards, groups, objective)
            optimizer.step()
            optimizer.zero_grad()
            for recorder in ranks:
                recorder.advance()
    for recorder in ranks:
        recorder.close()


def _rank(recorder, parts, table, tokens, mask, old, sampler, advantages, rewards, groups, objective) -> None:
    for rows in parts:
        logp = _score(table, tokens[rows])
        normalizer = GROUPS * SIZE / len(RANKS)
        out = gspo.policy_loss(
            objective,
            logp=logp,
            old_logp=old[rows],
            advantages=advantages[rows],
            sequences=mask[rows],
            normalizer=torch.tensor(normalizer),
        )
        recorder.part(
            objective=objective,
            loss=out.loss,
            normalizer=normalizer,
            metrics=out.metrics,
            logp=logp,
            old_logp=old[rows],
            behavior_logp=torch.where(mask[rows], sampler[rows], 0.0),
            mask=mask[rows],
            advantages=advantages[rows],
            rewards=rewards[rows],
            groups=groups[rows],
        )
        if recorder.gradient:
            recorder.watch(logp)
        (out.loss / len(RANKS)).backward()


def _sample(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Responses of a bigram policy: token 0 ends them and is counted; the first token is the prompt."""
    rows = [torch.full((GROUPS * SIZE,), 5) + torch.arange(GROUPS * SIZE) // SIZE]
    for _ in range(LONGEST):
        rows.append(torch.multinomial(torch.softmax(table[rows[-1]], -1), 1)[:, 0])
    tokens = torch.stack(rows, 1)
    ended = torch.cumsum(tokens[:, 1:] == 0, 1)
    return tokens, (ended == 0) | ((ended == 1) & (tokens[:, 1:] == 0))


def _score(table: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return gspo.token_logps(table[tokens[:, :-1]], tokens[:, 1:])


def _rewards(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    hits = ((tokens[:, 1:] % 3 == 1) & mask).sum(1)
    return hits.float() + 0.25 * mask.sum(1).float() / LONGEST

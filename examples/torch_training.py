"""GSPO from scratch in PyTorch: a small transformer learns to add by being told which of its answers are right.

    pip install 'gspo[torch]' matplotlib
    python examples/torch_training.py --out runs/torch          # some minutes on a laptop's CPU
    python examples/torch_training.py --out runs/torch --resume # go on where it was interrupted

Rewards alone cannot start from nothing: a random model is right once in some thousand answers, and a group of wrong
answers has no advantages. So some two hundred supervised steps on 1,000 answers come first, until two held-out questions
in five are answered. Everything from there on is learnt from rewards; the answers to nine in ten of the questions are
never shown.

Each iteration is a rollout: responses are sampled in groups, a response's advantage is its reward against those of its
group, and four mini-batches make an optimiser step each. In the first the ratio is 1; in the others the policy has moved,
and the clip range of the paper stops the responses that have moved their way already.

The folder of the run gets metrics.jsonl, checkpoint.pt and curve.svg. The same seed gives the same curve, resumed or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import arithmetic
import gspo_torch as gspo
from recording import HEADS, Record, Row, Settings, command_line, draw, run, summary, warm_up_rounds

LAYERS = 2


class Block(nn.Module):
    """Causal self-attention and a multilayer perceptron, each on a normalised copy of what it adds to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.before_attention(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


class Policy(nn.Module):
    """A decoder-only transformer over the symbols of an addition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.symbols = nn.Embedding(len(arithmetic.SYMBOLS), width)
        self.places = nn.Parameter(0.1 * torch.randn(arithmetic.PROMPT + arithmetic.ANSWER, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(arithmetic.SYMBOLS)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[B, T, V]` of what follows each token."""
        return self.head(self.blocks(self.symbols(tokens) + self.places[: tokens.shape[1]]))

    def logps(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """log π(y_t | x, y_<t) of the sampled tokens, `[B, 4]`."""
        logits = self(torch.cat([prompts, responses[:, :-1]], dim=1))
        return gspo.token_logps(logits[:, arithmetic.PROMPT - 1 :], responses)

    @torch.no_grad()
    def answer(self, prompts: Tensor, chance: torch.Generator | None = None) -> Tensor:
        """Responses `[B, 4]`: sampled where there is `chance`, else the most probable token each time."""
        tokens = prompts
        for _ in range(arithmetic.ANSWER):
            logits = self(tokens)[:, -1]
            choice = torch.multinomial(logits.softmax(-1), 1, generator=chance) if chance else logits.argmax(-1, True)
            tokens = torch.cat([tokens, choice], dim=1)
        return tokens[:, arithmetic.PROMPT :]


def warm_up(policy: Policy, settings: Settings) -> None:
    """Supervised steps on the shown answers, until some held-out questions are answered: a start at adding."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    draws = np.random.default_rng(settings.seed)
    for _ in warm_up_rounds(settings):
        if held_out_accuracy(policy) >= settings.warm_up:
            return
        for _ in range(10):
            questions = draws.choice(arithmetic.SHOWN, 64)
            answers = arithmetic.answers(questions)
            mask = torch.from_numpy(arithmetic.counted(answers))
            logp = policy.logps(torch.from_numpy(arithmetic.prompts(questions)), torch.from_numpy(answers))
            optimizer.zero_grad()
            (-logp[mask].mean()).backward()
            optimizer.step()


def iterate(policy: Policy, optimizer: torch.optim.Optimizer, settings: Settings, iteration: int) -> Row:
    """One rollout and its mini-batches. Chance is that of this iteration alone, so a resumed run needs no more."""
    draws = np.random.default_rng([settings.seed, iteration])
    chance = torch.Generator().manual_seed(int(draws.integers(2**62)))
    asked = draws.choice(arithmetic.REWARDED, settings.prompts, replace=False)
    questions = np.repeat(asked, settings.group)
    groups = torch.arange(settings.prompts).repeat_interleave(settings.group)

    prompts = torch.from_numpy(arithmetic.prompts(questions))
    responses = policy.answer(prompts, chance)
    rewards = torch.from_numpy(arithmetic.rewards(questions, responses.numpy()))
    mask = torch.from_numpy(arithmetic.counted(responses.numpy()))
    advantages = gspo.group_advantages(rewards, groups)

    parts = torch.arange(len(questions)).chunk(settings.mini_batches)
    with torch.no_grad():  # before the first step, and by the same function as `logp` below (GSPO-DATA-5)
        old_logps = [policy.logps(prompts[part], responses[part]) for part in parts]
    steps = []
    for part, old_logp in zip(parts, old_logps, strict=True):
        logp = policy.logps(prompts[part], responses[part])
        clip = gspo.Clip(settings.clip_low, settings.clip_high)
        loss, metrics = gspo.gspo_loss(logp, old_logp, advantages[part], mask[part], clip=clip)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        steps.append({name: value.item() for name, value in metrics.items()})
    informative = (advantages != 0).float().mean().item()
    return {"reward": rewards.mean().item(), "informative": informative} | summary(steps)


def held_out_accuracy(policy: Policy) -> float:
    """The share of the held-out questions that the most probable tokens answer."""
    responses = policy.answer(torch.from_numpy(arithmetic.prompts(arithmetic.HELD_OUT)))
    return float(arithmetic.rewards(arithmetic.HELD_OUT, responses.numpy()).mean())


def train(settings: Settings, out: Path, resume: bool = False) -> Iterator[Row]:
    """Yields the row of each iteration; writes metrics and checkpoints to `out`."""
    torch.manual_seed(settings.seed)
    policy = Policy(settings.width)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95))
    done = load(policy, optimizer, settings, out / "checkpoint.pt") if resume else 0
    if not done:
        warm_up(policy, settings)
    record = Record(out / "metrics.jsonl", before=done)
    for iteration in range(done + 1, settings.iterations + 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - 0.9 * iteration / settings.iterations)
        row = {"iteration": iteration} | iterate(policy, optimizer, settings, iteration)
        tested = iteration % settings.evaluate_every == 0 or iteration in (1, settings.iterations)
        row["held_out"] = held_out_accuracy(policy) if tested else None
        row = record.add(row)
        if iteration % settings.save_every == 0 or iteration == settings.iterations:
            save(policy, optimizer, settings, iteration, out / "checkpoint.pt")
        yield row
    if done == settings.iterations:
        yield record.rows[-1]
    draw(record.rows, settings, out / "curve.svg")


def save(policy: Policy, optimizer: torch.optim.Optimizer, settings: Settings, done: int, path: Path) -> None:
    """Written beside the old checkpoint and put in its place: an interruption leaves one of the two."""
    state = {"policy": policy.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state | {"done": done, "settings": asdict(settings)}, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def load(policy: Policy, optimizer: torch.optim.Optimizer, settings: Settings, path: Path) -> int:
    """Puts a checkpoint into policy and optimiser; returns how many iterations it has behind it."""
    state = torch.load(path, weights_only=True)
    settings.expect(state["settings"], path)
    policy.load_state_dict(state["policy"])
    optimizer.load_state_dict(state["optimizer"])
    return state["done"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, and says how it ended."""
    run(command_line(__doc__, "runs/torch", arguments), train)


if __name__ == "__main__":
    main()

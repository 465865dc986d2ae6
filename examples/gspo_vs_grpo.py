"""What the GSPO paper says of GSPO and GRPO, tried at a small scale: dense and mixture of experts, several seeds.

    pip install 'gspo[torch]' matplotlib
    python examples/gspo_vs_grpo.py --out runs/gspo_vs_grpo     # seven minutes of one core
    python examples/gspo_vs_grpo.py --out docs/benchmarks --check   # are table and figure those of the numbers beside them?

The policy and the task are those of torch_training.py, smaller. GSPO and GRPO get the same warmed-up parameters, the same
questions and the same learning rate; GSPO has the paper's clip range, 3e-4 and 4e-4, GRPO the one that the paper tuned for it,
0.2 and 0.27. In the mixture each token goes to two of eight experts. Routing replay scores a response with the experts that the
old policy chose for it. The paper's claims are about models of 30 billion parameters and responses of thousands of tokens;
here a response has two to four, so what shows here shows without scale, and what does not may need it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import arithmetic
import gspo_torch as gspo
from recording import HUES, INK, STYLE, Settings, smooth
from torch_training import Policy, held_out_accuracy, warm_up

OBJECTIVES = {"GSPO": gspo.Objective.gspo(), "GRPO": gspo.Objective.grpo()}
POLICIES = ("dense", "mixture", "mixture, replay")
NAME = "gspo_vs_grpo"
Numbers = dict[str, Any]


class Mixture(nn.Module):
    """A multilayer perceptron of which each token uses the two experts, of eight, that its router scores highest."""

    def __init__(self, width: int, experts: int = 8, active: int = 2) -> None:
        super().__init__()
        self.active, self.router = active, nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, width) / width**0.5)
        self.down = nn.Parameter(torch.randn(experts, width, width) / width**0.5)
        self.chosen: Tensor | None = None  # of the last call
        self.replayed: Tensor | None = None  # in place of the router's choice

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        self.chosen = scores.topk(self.active).indices if self.replayed is None else self.replayed
        gates = torch.zeros_like(scores).scatter(-1, self.chosen, scores.gather(-1, self.chosen).softmax(-1))
        inner = F.gelu(torch.einsum("btw,ewh->bteh", x, self.up)) * gates[..., None]
        return torch.einsum("bteh,ehw->btw", inner, self.down)


def new_policy(name: str, settings: Settings) -> Policy:
    """A dense policy, or one with a mixture in each block."""
    torch.manual_seed(settings.seed)
    policy = Policy(settings.width)
    if name != "dense":
        for block in policy.blocks:
            block.mlp = Mixture(settings.width)
    return policy


def mixtures(policy: Policy) -> list[Mixture]:
    """The mixtures of a policy."""
    return [module for module in policy.modules() if isinstance(module, Mixture)]


class Part(NamedTuple):
    """A mini-batch, as the old policy saw it."""

    prompts: Tensor
    responses: Tensor
    mask: Tensor
    advantages: Tensor
    old_logp: Tensor
    routes: list[Tensor]


def logps(policy: Policy, prompts: Tensor, responses: Tensor, routes: Sequence[Tensor] = ()) -> Tensor:
    """log π of the sampled tokens, through the experts of `routes` where there are any."""
    for mixture, route in zip(mixtures(policy), routes, strict=False):
        mixture.replayed = route
    logp = policy.logps(prompts, responses)
    for mixture in mixtures(policy):
        mixture.replayed = None
    return logp


def rollout(policy: Policy, settings: Settings, iteration: int) -> tuple[list[Part], float]:
    """The mini-batches of a rollout, and its mean reward. Both objectives are asked the same questions."""
    draws = np.random.default_rng([settings.seed, iteration])
    chance = torch.Generator().manual_seed(int(draws.integers(2**62)))
    questions = np.repeat(draws.choice(arithmetic.REWARDED, settings.prompts, replace=False), settings.group)
    prompts = torch.from_numpy(arithmetic.prompts(questions))
    responses = policy.answer(prompts, chance)
    rewards = torch.from_numpy(arithmetic.rewards(questions, responses.numpy()))
    groups = torch.arange(settings.prompts).repeat_interleave(settings.group)
    advantages = gspo.group_advantages(rewards, groups)
    mask = torch.from_numpy(arithmetic.counted(responses.numpy()))
    parts = []
    for rows in torch.arange(len(questions)).chunk(settings.mini_batches):
        with torch.no_grad():
            old_logp = logps(policy, prompts[rows], responses[rows])
        routes = [mixture.chosen for mixture in mixtures(policy)]
        parts.append(Part(prompts[rows], responses[rows], mask[rows], advantages[rows], old_logp, routes))
    return parts, rewards.mean().item()


def train(name: str, objective: gspo.Objective, start: Policy, settings: Settings) -> Iterator[Numbers]:
    """Trains a copy of `start`; yields the numbers of each rollout."""
    policy = new_policy(name, settings)
    policy.load_state_dict(start.state_dict())
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95))
    for iteration in range(1, settings.iterations + 1):
        parts, reward = rollout(policy, settings, iteration)
        seen = []
        for part in parts:
            routes = part.routes if name == "mixture, replay" else ()
            logp = logps(policy, part.prompts, part.responses, routes)
            arguments = {"old_logp": part.old_logp, "advantages": part.advantages, "sequences": part.mask}
            loss, metrics = gspo.policy_loss(objective, logp=logp, **arguments)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            seen.append(spread(logp.detach(), part) | {"clip_fraction": metrics["clip_fraction"].item()})
        said = {key: float(np.mean([one[key] for one in seen])) for key in seen[0]}
        yield {"reward": reward, "rerouted": rerouted(policy, parts[0])} | said
    yield {"held_out": held_out_accuracy(policy)}


def spread(logp: Tensor, part: Part) -> Numbers:
    """The standard deviations of the log-ratios of tokens and of responses."""
    token = gspo.token_log_ratio(logp, part.old_logp, part.mask)[part.mask]
    return {
        "token_spread": token.std().item(),
        "response_spread": gspo.sequence_log_ratio(logp, part.old_logp, part.mask).std().item(),
    }


def rerouted(policy: Policy, part: Part) -> float:
    """The share of experts that differ for the same tokens after the four steps of a rollout; the paper has 0.1 after one."""
    if not part.routes:
        return 0.0
    with torch.no_grad():
        logps(policy, part.prompts, part.responses)
    kept = [
        (mixture.chosen[..., None] == old[..., None, :]).any(-1).float().mean()
        for mixture, old in zip(mixtures(policy), part.routes, strict=True)
    ]
    return 1 - torch.stack(kept).mean().item()


def measure(settings: Settings) -> list[Numbers]:
    """Every policy and objective on one seed: curves, and the accuracy at the end."""
    runs, starts = [], {}
    for kind in ("dense", "mixture"):
        starts[kind] = new_policy(kind, settings)
        warm_up(starts[kind], settings)
    for name in POLICIES:
        for objective in OBJECTIVES:
            *rows, last = train(name, OBJECTIVES[objective], starts[name.split(",")[0]], settings)
            curves = {key: [float(f"{row[key]:.4g}") for row in rows] for key in rows[0]}
            runs.append({"policy": name, "objective": objective, "seed": settings.seed} | curves | last)
            sys.stderr.write(
                f"seed {settings.seed}, {name}, {objective}: {last['held_out']:.1%} of the held-out questions\n"
            )
    return runs


def measure_all(settings: Settings, seeds: int, path: Path) -> Numbers:
    """The numbers of all seeds; written after each, and those that are written already are not measured again."""
    found = {"settings": vars(settings), "seconds": 0.0, "runs": []}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        settings.expect(found["settings"], path)
    for seed in range(len({run["seed"] for run in found["runs"]}), seeds):
        started = time.process_time()
        found["runs"] += measure(replace(settings, seed=seed))
        found["seconds"] += time.process_time() - started
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its 95% interval by Student's t."""
    t = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}[len(values)]
    return float(np.mean(values)), float(t * np.std(values, ddof=1) / len(values) ** 0.5)


def chosen(runs: Sequence[Numbers], policy: str, objective: str) -> list[Numbers]:
    """The runs of a policy and an objective, by seed."""
    return [run for run in runs if (run["policy"], run["objective"]) == (policy, objective)]


MEASURED = {
    "reward": "mean reward",
    "held_out": "held out, at the end",
    "clip_fraction": "clipped tokens",
    "token_spread": "sd of token log-ratios",
    "response_spread": "sd of response log-ratios",
    "rerouted": "experts changed",
}


def table(found: Numbers) -> str:
    """A row per policy and objective, and what GSPO has more of, seed by seed."""
    settings = found["settings"]
    responses = f"{settings['prompts']} x {settings['group']} responses"
    title = (
        f"{len({run['seed'] for run in found['runs']})} seeds; {settings['iterations']} rollouts of {responses}; means over a run, with half of the 95% "
        f"interval over seeds; {found['seconds']:.0f} s of one core."
    )
    columns = f"| policy | objective | {' | '.join(MEASURED.values())} |\n|---|---|{'---:|' * len(MEASURED)}"
    rows = [summary_row(found["runs"], policy, objective) for policy in POLICIES for objective in OBJECTIVES]
    paired = "| policy | mean reward, GSPO - GRPO | held out, GSPO - GRPO | clipped tokens, GSPO / GRPO |\n|---|---:|---:|---:|"
    pairs = [difference_row(found["runs"], policy) for policy in POLICIES]
    return "\n".join([title, "", columns, *rows, "", paired, *pairs, ""])


def summary_row(runs: Sequence[Numbers], policy: str, objective: str) -> str:
    """Means over seeds."""
    own = chosen(runs, policy, objective)
    cells = [interval([float(np.mean(run[name])) for run in own]) for name in MEASURED]
    shown = [f"{mean:.3g} ± {half:.1g}" for mean, half in cells]
    return f"| {policy} | {objective} | {' | '.join(shown if policy != 'dense' else [*shown[:-1], ''])} |"


def difference_row(runs: Sequence[Numbers], policy: str) -> str:
    """Means over seeds of what the two objectives differ by on the same seed."""
    ours, theirs = (chosen(runs, policy, objective) for objective in OBJECTIVES)
    cells = []
    for name in ("reward", "held_out"):
        mean, half = interval([float(np.mean(a[name]) - np.mean(b[name])) for a, b in zip(ours, theirs, strict=True)])
        cells.append(f"{mean:+.3f} ± {half:.3f}")
    clipped = [float(np.mean([run["clip_fraction"] for run in side])) for side in (ours, theirs)]
    cells.append(f"{clipped[0] / clipped[1]:.0f}" if clipped[1] else "GRPO clips none")
    return f"| {policy} | {' | '.join(cells)} |"


def draw(found: Numbers, path: Path) -> None:
    """Rewards and clipped tokens over rollouts: a thin line per seed, a thick one for their mean."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(2, 3, figsize=(10, 4.6), layout="constrained", sharex=True, sharey="row")
        for (above, below), policy in zip(panels.T, POLICIES, strict=True):
            for hue, objective in zip(HUES, OBJECTIVES, strict=False):
                own = chosen(found["runs"], policy, objective)
                curves(above, [run["reward"] for run in own], hue, objective)
                curves(below, [run["clip_fraction"] for run in own], hue, objective)
            above.set_title(policy)
            below.set(xlabel="rollouts", yscale="log", ylim=(6e-4, 0.6))
            for level, of in ((0.15, "GSPO"), (0.0013, "GRPO")):
                below.axhline(level, color=INK, lw=0.8, ls="--")
                below.annotate(f"{of} in the paper", (1, 0.95 * level), color=INK, fontsize=7, va="top")
        panels[0, 0].set_ylabel("reward")
        panels[1, 0].set_ylabel("clipped tokens")
        panels[0, 0].legend()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def curves(panel: Any, values: Sequence[Sequence[float]], hue: str, label: str) -> None:
    """Smoothed curves of one objective."""
    smoothed = np.stack([smooth(one) for one in values])
    steps = np.arange(1, smoothed.shape[1] + 1)
    panel.plot(steps, smoothed.T, color=hue, alpha=0.3, lw=0.7)
    panel.plot(steps, smoothed.mean(0), color=hue, lw=2, label=label)


def write(found: Numbers, out: Path) -> None:
    """Table and figure of the numbers."""
    (out / f"{NAME}.md").write_text(table(found), encoding="utf-8")
    draw(found, out / f"{NAME}.svg")


def stale(out: Path) -> list[str]:
    """The names of the table and the figure in `out` that are not those of the numbers in `out`."""
    names = (f"{NAME}.md", f"{NAME}.svg")
    with tempfile.TemporaryDirectory() as fresh:
        write(json.loads((out / f"{NAME}.json").read_text(encoding="utf-8")), Path(fresh))
        return [name for name in names if (out / name).read_bytes() != (Path(fresh) / name).read_bytes()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs") / NAME,
        help=f"folder of numbers, table and figure (default: runs/{NAME})",
    )
    parser.add_argument("--seeds", type=int, default=4, help="2 to 8 (default: 4)")
    parser.add_argument("--iterations", type=int, default=80, help="rollouts of each run (default: 80)")
    parser.add_argument(
        "--check", action="store_true", help="measure nothing; compare table and figure with the numbers"
    )
    parser.add_argument(
        "--draw", action="store_true", help="measure nothing; make table and figure of the numbers in the folder"
    )
    wanted = parser.parse_args(arguments)
    if not 2 <= wanted.seeds <= 8:
        parser.error(f"--seeds: expected 2 to 8, got {wanted.seeds}")
    if wanted.iterations < 1:
        parser.error(f"--iterations: expected at least 1, got {wanted.iterations}")
    if (wanted.draw or wanted.check) and not (wanted.out / f"{NAME}.json").is_file():
        parser.error(f"--out: expected the {NAME}.json of a run in {wanted.out}, found none")
    if wanted.draw:
        write(json.loads((wanted.out / f"{NAME}.json").read_text(encoding="utf-8")), wanted.out)
        return 0
    if wanted.check:
        wrong = stale(wanted.out)
        sys.stdout.write("".join(f"{name}: not that of {NAME}.json\n" for name in wrong))
        return int(bool(wrong))
    torch.set_num_threads(1)
    settings = Settings(iterations=wanted.iterations, prompts=32, group=8, learning_rate=1e-3, warm_up=0.2, width=32)
    found = measure_all(settings, wanted.seeds, wanted.out / f"{NAME}.json")
    write(found, wanted.out)
    sys.stdout.write(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

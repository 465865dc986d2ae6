"""GSPO from scratch in JAX: a small transformer learns to add by being told which of its answers are right.

    pip install 'gspo[jax]' matplotlib
    python examples/jax_training.py --out runs/jax           # some minutes on a laptop's CPU
    python examples/jax_training.py --out runs/jax --resume  # go on where it was interrupted

The run is that of torch_training.py, written as pure functions on a tree of parameters: three compiled programs, which
answer, score and update. As there, supervised steps on 1,000 answers come first, until two held-out questions in five are
answered, because a group of wrong answers has no advantages; everything from there on is learnt from rewards.

The folder of the run gets metrics.jsonl, checkpoint.npz and curve.svg. The same seed gives the same curve, resumed or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import arithmetic
import gspo_jax as gspo
from recording import HEADS, Record, Row, Settings, command_line, draw, run, summary, warm_up_rounds

Tree = dict[str, Any]
LAYERS = 2
PLACES = arithmetic.PROMPT + arithmetic.ANSWER


@partial(jax.jit, static_argnames="width")
def new_policy(key: Array, width: int) -> Tree:
    """The parameters of a decoder-only transformer over the symbols of an addition."""
    keys = iter(jax.random.split(key, 3 + 4 * LAYERS))

    def matrix(inputs: int, outputs: int) -> Array:
        return jax.random.normal(next(keys), (inputs, outputs)) / inputs**0.5

    block = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
    return {
        "symbols": jax.random.normal(next(keys), (len(arithmetic.SYMBOLS), width)),
        "places": 0.1 * jax.random.normal(next(keys), (PLACES, width)),
        "blocks": [{name: matrix(*shape) for name, shape in block.items()} for _ in range(LAYERS)],
        "head": matrix(width, len(arithmetic.SYMBOLS)),
    }


def logits(policy: Tree, tokens: Array) -> Array:
    """`[B, T, V]`: what follows each token."""
    length = tokens.shape[1]
    x = policy["symbols"][tokens] + policy["places"][:length]
    for block in policy["blocks"]:
        q, k, v = jnp.split(normalised(x) @ block["qkv"], 3, axis=-1)
        heads = (part.reshape(*part.shape[:2], HEADS, -1) for part in (q, k, v))
        x = x + jax.nn.dot_product_attention(*heads, is_causal=True).reshape(x.shape) @ block["out"]
        x = x + jax.nn.gelu(normalised(x) @ block["up"]) @ block["down"]
    return normalised(x) @ policy["head"]


def normalised(x: Array) -> Array:
    """x over its root mean square."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def logps(policy: Tree, prompts: Array, responses: Array) -> Array:
    """log π(y_t | x, y_<t) of the sampled tokens, `[B, 4]`."""
    seen = jnp.concatenate([prompts, responses[:, :-1]], axis=1)
    return gspo.token_logps(logits(policy, seen)[:, arithmetic.PROMPT - 1 :], responses)


@partial(jax.jit, static_argnames="greedy")
def answer(policy: Tree, prompts: Array, key: Array, greedy: bool = False) -> Array:
    """Responses `[B, 4]`: sampled, or the most probable token each time."""
    tokens = jnp.pad(prompts, ((0, 0), (0, arithmetic.ANSWER)))

    def write(tokens: Array, place: Array) -> tuple[Array, None]:
        last = logits(policy, tokens)[:, place - 1]
        choice = last.argmax(-1) if greedy else jax.random.categorical(jax.random.fold_in(key, place), last)
        return tokens.at[:, place].set(choice.astype(tokens.dtype)), None

    tokens, _ = jax.lax.scan(write, tokens, jnp.arange(arithmetic.PROMPT, PLACES))
    return tokens[:, arithmetic.PROMPT :]


score = jax.jit(logps)  # the old policy's log-probabilities, by the same function as the new one's (GSPO-DATA-5)
compare = jax.jit(gspo.group_advantages)


@partial(jax.jit, static_argnames="clip")
def update(policy: Tree, moments: Tree, rate: float, batch: Tree, clip: gspo.Clip) -> tuple[Tree, Tree, Tree]:
    """One optimiser step on a mini-batch: the policy, the moments of Adam, and the metrics."""

    def loss(policy: Tree) -> tuple[Array, Tree]:
        logp = logps(policy, batch["prompts"], batch["responses"])
        return tuple(gspo.gspo_loss(logp, batch["old_logp"], batch["advantages"], batch["mask"], clip=clip))

    gradient, metrics = jax.grad(loss, has_aux=True)(policy)
    return *adam(policy, moments, gradient, rate), metrics


@jax.jit
def imitate(policy: Tree, moments: Tree, rate: float, batch: Tree) -> tuple[Tree, Tree]:
    """One supervised step: up goes the mean log-probability of the tokens of right answers."""

    def loss(policy: Tree) -> Array:
        return -jnp.mean(logps(policy, batch["prompts"], batch["responses"]), where=batch["mask"])

    return adam(policy, moments, jax.grad(loss)(policy), rate)


def adam(policy: Tree, moments: Tree, gradient: Tree, rate: float) -> tuple[Tree, Tree]:
    """Adam with a gradient of norm at most 1 (Optax has more of this)."""
    norm = jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(gradient)))
    gradient = jax.tree.map(lambda leaf: leaf / jnp.maximum(norm, 1.0), gradient)
    step = moments["step"] + 1
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments["mean"], gradient)
    square = jax.tree.map(lambda s, g: 0.95 * s + 0.05 * g * g, moments["square"], gradient)

    def moved(leaf: Array, m: Array, s: Array) -> Array:
        return leaf - rate * (m / (1 - 0.9**step)) / (jnp.sqrt(s / (1 - 0.95**step)) + 1e-8)

    return jax.tree.map(moved, policy, mean, square), {"step": step, "mean": mean, "square": square}


def no_moments(policy: Tree) -> Tree:
    """Adam's state before the first step."""
    zeros = jax.tree.map(jnp.zeros_like, policy)
    return {"step": jnp.zeros(()), "mean": zeros, "square": zeros}


def warm_up(policy: Tree, settings: Settings) -> Tree:
    """Supervised steps on the shown answers, until some held-out questions are answered: a start at adding."""
    moments, draws = no_moments(policy), np.random.default_rng(settings.seed)
    for _ in warm_up_rounds(settings):
        if held_out_accuracy(policy) >= settings.warm_up:
            return policy
        for _ in range(10):
            questions = draws.choice(arithmetic.SHOWN, 64)
            answers = arithmetic.answers(questions)
            mask = arithmetic.counted(answers)
            batch = {"prompts": arithmetic.prompts(questions), "responses": answers, "mask": mask}
            policy, moments = imitate(policy, moments, 3e-3, batch)
    raise AssertionError("warm_up_rounds ends by an error")


def iterate(policy: Tree, moments: Tree, settings: Settings, iteration: int) -> tuple[Tree, Tree, Row]:
    """One rollout and its mini-batches. Chance is that of this iteration alone, so a resumed run needs no more."""
    draws = np.random.default_rng([settings.seed, iteration])
    asked = draws.choice(arithmetic.REWARDED, settings.prompts, replace=False)
    questions = np.repeat(asked, settings.group)
    groups = np.repeat(np.arange(settings.prompts), settings.group)

    prompts = arithmetic.prompts(questions)
    responses = np.asarray(answer(policy, prompts, jax.random.key(draws.integers(2**31))))
    rewards = arithmetic.rewards(questions, responses)
    rollout = {
        "prompts": prompts,
        "responses": responses,
        "mask": arithmetic.counted(responses),
        "advantages": compare(rewards, groups),
    }
    parts = np.split(np.arange(len(questions)), settings.mini_batches)
    batches = [{name: values[part] for name, values in rollout.items()} for part in parts]
    old_logps = [score(policy, batch["prompts"], batch["responses"]) for batch in batches]  # before the first step
    rate = settings.learning_rate * (1 - 0.9 * iteration / settings.iterations)
    clip, steps = gspo.Clip(settings.clip_low, settings.clip_high), []
    for batch, old_logp in zip(batches, old_logps, strict=True):
        policy, moments, metrics = update(policy, moments, rate, batch | {"old_logp": old_logp}, clip)
        steps.append({name: float(value) for name, value in metrics.items()})
    informative = np.mean(np.asarray(rollout["advantages"]) != 0).item()
    return policy, moments, {"reward": float(rewards.mean()), "informative": informative} | summary(steps)


def held_out_accuracy(policy: Tree) -> float:
    """The share of the held-out questions that the most probable tokens answer."""
    prompts = arithmetic.prompts(arithmetic.HELD_OUT)
    responses = answer(policy, prompts, jax.random.key(0), greedy=True)
    return float(arithmetic.rewards(arithmetic.HELD_OUT, np.asarray(responses)).mean())


def train(settings: Settings, out: Path, resume: bool = False) -> Iterator[Row]:
    """Yields the row of each iteration; writes metrics and checkpoints to `out`."""
    policy = new_policy(jax.random.key(settings.seed), settings.width)
    moments, done = no_moments(policy), 0
    if resume:
        policy, moments, done = load((policy, moments), settings, out / "checkpoint.npz")
    else:
        policy = warm_up(policy, settings)
    record = Record(out / "metrics.jsonl", before=done)
    for iteration in range(done + 1, settings.iterations + 1):
        policy, moments, row = iterate(policy, moments, settings, iteration)
        tested = iteration % settings.evaluate_every == 0 or iteration in (1, settings.iterations)
        row = {"iteration": iteration} | row | {"held_out": held_out_accuracy(policy) if tested else None}
        row = record.add(row)
        if iteration % settings.save_every == 0 or iteration == settings.iterations:
            save((policy, moments), settings, iteration, out / "checkpoint.npz")
        yield row
    if done == settings.iterations:
        yield record.rows[-1]
    draw(record.rows, settings, out / "curve.svg")


def save(state: tuple[Tree, Tree], settings: Settings, done: int, path: Path) -> None:
    """Written beside the old checkpoint and put in its place: an interruption leaves one of the two."""
    leaves = {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(state))}
    said = json.dumps({"done": done, "settings": asdict(settings)})
    with path.with_suffix(".new").open("wb") as file:
        np.savez(file, said=said, **leaves)
    path.with_suffix(".new").replace(path)


def load(like: tuple[Tree, Tree], settings: Settings, path: Path) -> tuple[Tree, Tree, int]:
    """The policy, the moments, and how many iterations they have behind them."""
    with np.load(path) as saved:
        said = json.loads(str(saved["said"]))
        settings.expect(said["settings"], path)
        leaves, tree = jax.tree.flatten(like)
        state = jax.tree.unflatten(tree, [jnp.asarray(saved[str(number)]) for number in range(len(leaves))])
    return *state, said["done"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, and says how it ended."""
    run(command_line(__doc__, "runs/jax", arguments), train)


if __name__ == "__main__":
    main()

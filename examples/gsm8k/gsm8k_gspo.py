"""GSPO on GSM8K with a model of Hugging Face: AReaL's example in the terms of this package.

    pip install 'gspo[torch]' transformers datasets PyYAML
    python examples/gsm8k/gsm8k_gspo.py examples/gsm8k/gsm8k_gspo.yaml     # a GPU, a model and GSM8K from the Hub
    python examples/gsm8k/gsm8k_gspo.py examples/gsm8k/tiny.yaml           # a CPU, a tiny random model, made-up problems

Four things are AReaL's. Groups have 4 responses. Dynamic sampling: a group whose rewards are all equal has no advantage, so
questions are drawn until enough groups have one. The loss is decoupled: the ratio is to the policy before the first mini-batch
(`old_logp`, by the training forward pass), and a weight π_old/μ stands for the sampler, whose log-probabilities (`behavior_logp`)
come from generation, in another arithmetic. The weight is capped: a token above the cap counts nothing. The clip
range is the paper's; any key of the configuration can be set behind it, as in `steps=3 clip_high=0.001`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

import gspo_torch as gspo
from gsm8k_problems import MARK, load_problems, reward

FOLDER = Path(__file__).parent
ASK = f"{{question}}\nThink step by step and end with the answer as a number behind {MARK}."


@dataclass(frozen=True)
class Configuration:
    """The keys of a configuration file."""

    model: str | dict[str, Any] = "Qwen/Qwen2.5-1.5B-Instruct"
    problems: str = "openai/gsm8k"
    steps: int = 200
    group_size: int = 4
    groups: int = 64
    draws: int = 4
    mini_batches: int = 4
    micro_batch: int = 16
    clip_low: float = 3e-4
    clip_high: float = 4e-4
    behavior_cap: float = 5.0
    temperature: float = 1.0
    max_new_tokens: int = 512
    learning_rate: float = 1e-6
    warm_up: int = 0
    dtype: str = "bfloat16"
    device: str = "cuda"
    seed: int = 0
    save: str | None = None

    @classmethod
    def read(cls, path: Path, changes: Sequence[str] = ()) -> Configuration:
        """A YAML file, and `key=value` changes to it."""
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected keys and values, got {type(values).__name__}")
        for change in changes:
            key, equals, value = change.partition("=")
            if not equals:
                raise ValueError(f"{change}: expected key=value")
            values[key] = yaml.safe_load(value)
        known = {item.name: item.default for item in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise ValueError(f"{key}: expected one of {', '.join(sorted(known))}")
        return cls(**{key: _number(key, value, known[key]) for key, value in values.items()})

    @property
    def objective(self) -> gspo.Objective:
        """GSPO with the weight of the sampler: w = π_old/μ where that is at most the cap, 0 above."""
        weight = gspo.Correction("token", "mask", high=self.behavior_cap)
        return gspo.Objective.gspo(gspo.Clip(self.clip_low, self.clip_high)).replace(correction=weight)


def _number(key: str, value: Any, default: Any) -> Any:
    """A value as its default is: YAML takes 1e-6, without a point, for a text."""
    if not isinstance(default, (int, float)):
        return value
    least = 2 if key == "group_size" else 0 if isinstance(default, float) or key in ("warm_up", "seed") else 1
    whole = isinstance(default, int)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number >= least or (whole and not number.is_integer()):
        raise ValueError(
            f"{key}: expected {'a whole number' if whole else 'a number'} of at least {least}, got {value!r}"
        )
    return int(number) if whole else number


class LogpRecorder:
    """A logits processor that changes nothing and keeps log μ of each token that generation samples, and no logits."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.logps: list[Tensor] = []
        self.last: Tensor | None = None

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        self.note(tokens)
        self.last = scores
        return scores

    def note(self, tokens: Tensor) -> None:
        """The newest of `tokens` `[B, T]` was sampled from the scores before it."""
        if self.last is not None:
            self.logps.append(gspo.token_logps(self.last, tokens[:, -1], temperature=self.temperature))


@dataclass
class Rollout:
    """Responses with everything that a step needs of them; rows are responses, groups are consecutive."""

    tokens: Tensor
    seen: Tensor
    prompt: int
    mask: Tensor
    behavior_logp: Tensor
    rewards: Tensor
    groups: Tensor
    texts: list[str] = field(default_factory=list)

    def rows(self, rows: Tensor) -> Rollout:
        """Some of the responses."""
        arrays = ("tokens", "seen", "mask", "behavior_logp", "rewards", "groups")
        chosen = {name: getattr(self, name)[rows] for name in arrays}
        return dataclasses.replace(self, texts=[self.texts[row] for row in rows.tolist()], **chosen)


class Trainer:
    """A model, its tokenizer, and the steps of GSPO."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.problems = load_problems(configuration.problems)
        self.model, self.tokenizer = load_model(configuration, self.problems)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=configuration.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.draws = np.random.default_rng(configuration.seed)
        torch.manual_seed(configuration.seed)

    def prompt(self, question: str) -> str:
        """The question as the model is asked it."""
        asked = ASK.format(question=question)
        if not self.tokenizer.chat_template:
            return asked
        said = [{"role": "user", "content": asked}]
        return self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)

    @torch.no_grad()
    def generate(self, problems: Sequence[dict[str, str]]) -> Rollout:
        """A group of responses to each problem, as the policy samples them."""
        wanted = self.configuration
        asked = [self.prompt(problem["question"]) for problem in problems for _ in range(wanted.group_size)]
        said = self.tokenizer(asked, return_tensors="pt", padding=True, padding_side="left").to(self.model.device)
        recorder = LogpRecorder(wanted.temperature)
        tokens = self.model.eval().generate(
            **said,
            logits_processor=[recorder],
            do_sample=True,
            temperature=wanted.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=wanted.max_new_tokens,
        )
        recorder.note(tokens)
        prompt = said["input_ids"].shape[1]
        return self.judged(problems, tokens, said["attention_mask"], prompt, torch.stack(recorder.logps, dim=1))

    def judged(
        self, problems: Sequence[dict[str, str]], tokens: Tensor, asked: Tensor, prompt: int, behavior_logp: Tensor
    ) -> Rollout:
        """Which tokens count, which the model sees, and what the responses are worth."""
        responses = tokens[:, prompt:]
        ends = (responses == self.tokenizer.eos_token_id).long()
        mask = ends.cumsum(1) - ends == 0  # the end of a response was sampled, so it counts (GSPO-DATA-4)
        texts = [
            self.tokenizer.decode(row[kept], skip_special_tokens=True)
            for row, kept in zip(responses.cpu(), mask.cpu(), strict=True)
        ]
        size = self.configuration.group_size
        rewards = [reward(text, problems[row // size]["answer"]) for row, text in enumerate(texts)]
        return Rollout(
            tokens=tokens,
            seen=torch.cat([asked, mask.to(asked.dtype)], dim=1),
            prompt=prompt,
            mask=mask,
            behavior_logp=behavior_logp,
            rewards=torch.tensor(rewards, device=tokens.device),
            groups=torch.arange(len(problems), device=tokens.device).repeat_interleave(size),
            texts=texts,
        )

    def logps(self, rollout: Rollout) -> Tensor:
        """log π of the sampled tokens by the training forward pass; logits exist for a few tokens at a time."""
        places = (rollout.seen.cumsum(1) - 1).clamp(min=0)
        body = self.model.get_decoder()
        hidden = body(input_ids=rollout.tokens, attention_mask=rollout.seen, position_ids=places, use_cache=False)[0]
        head = self.model.get_output_embeddings().weight
        responses, temperature = rollout.tokens[:, rollout.prompt :], self.configuration.temperature
        return gspo.linear_token_logps(hidden[:, rollout.prompt - 1 : -1], head, responses, temperature=temperature)

    def draw(self) -> tuple[list[Rollout], int, float]:
        """Informative groups, drawn until there are enough; how many were drawn, and their mean reward."""
        wanted, kept, rewards, found = self.configuration, [], [], 0
        while found < wanted.groups and len(rewards) < wanted.draws:
            asked = self.draws.choice(len(self.problems), wanted.groups, replace=len(self.problems) < wanted.groups)
            rollout = self.generate([self.problems[index] for index in asked])
            rewards.append(rollout.rewards.mean().item())
            useful = gspo.informative_groups(rollout.rewards, rollout.groups).nonzero()[:, 0]
            useful = useful[: (wanted.groups - found) * wanted.group_size]
            if len(useful):
                kept.append(rollout.rows(useful))
                found += len(useful) // wanted.group_size
        return kept, len(rewards) * wanted.groups, float(np.mean(rewards))

    def step(self) -> dict[str, float]:
        """One rollout and its mini-batches; what happened, as numbers."""
        rollouts, drawn, mean_reward = self.draw()
        parts = [part for rollout in rollouts for part in self.micro_batches(rollout)]
        said = {"reward": mean_reward, "groups_drawn": drawn, "responses": sum(len(part.rewards) for part, *_ in parts)}
        count = min(self.configuration.mini_batches, len(parts))
        bounds = np.linspace(0, len(parts), count + 1).astype(int)
        metrics = [self.update(parts[low:high]) for low, high in pairwise(bounds)]
        for name in ("clip_fraction", "ratio_min", "ratio_max", "behavior_weight", "capped"):
            values = [one[name] for one in metrics]
            reduce = {"ratio_min": min, "ratio_max": max}.get(name, np.mean)
            said[name] = float(reduce(values)) if values else float("nan")
        return said

    def micro_batches(self, rollout: Rollout) -> list[tuple[Rollout, Tensor, Tensor]]:
        """Parts that fit into memory, each with its advantages and its old log-probabilities."""
        advantages = gspo.group_advantages(rollout.rewards, rollout.groups)
        size = self.configuration.micro_batch
        parts = torch.arange(len(advantages), device=advantages.device).split(size)
        with torch.no_grad():
            return [(part, advantages[rows], self.logps(part)) for rows in parts for part in [rollout.rows(rows)]]

    def update(self, parts: Sequence[tuple[Rollout, Tensor, Tensor]]) -> dict[str, float]:
        """One optimiser step on a mini-batch, micro-batch by micro-batch; the loss is that of their union."""
        count = sum(len(part.rewards) for part, *_ in parts)
        seen = []
        for part, advantages, old_logp in parts:
            loss, metrics = gspo.policy_loss(
                self.configuration.objective,
                logp=self.logps(part),
                old_logp=old_logp,
                behavior_logp=part.behavior_logp,
                advantages=advantages,
                sequences=part.mask,
                normalizer=count,
            )
            loss.backward()
            weight = torch.exp(old_logp - part.behavior_logp)[part.mask]
            capped = (weight > self.configuration.behavior_cap).float().mean()
            seen.append(metrics | {"behavior_weight": weight.mean(), "capped": capped})
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {name: float(np.mean([one[name].item() for one in seen])) for name in seen[0]} | {
            "ratio_min": min(one["ratio_min"].item() for one in seen),
            "ratio_max": max(one["ratio_max"].item() for one in seen),
        }

    def warm_up(self) -> None:
        """Supervised steps on the solutions, for a model that knows nothing."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        for _ in range(self.configuration.warm_up):
            chosen = self.draws.choice(len(self.problems), 16)
            texts = [self.solved(self.problems[index]) for index in chosen]
            said = self.tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
            labels = said["input_ids"].masked_fill(said["attention_mask"] == 0, -100)
            self.model(**said.to(self.model.device), labels=labels.to(self.model.device)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def solved(self, problem: dict[str, str]) -> str:
        """A problem as asked, with its solution."""
        return f"{self.prompt(problem['question'])} {problem['answer']} {self.tokenizer.eos_token}"

    def train(self) -> Iterator[dict[str, float]]:
        """Yields the numbers of each step."""
        self.warm_up()
        for number in range(1, self.configuration.steps + 1):
            yield {"step": number} | self.step()
        if self.configuration.save:
            self.model.save_pretrained(self.configuration.save)
            self.tokenizer.save_pretrained(self.configuration.save)


def load_model(configuration: Configuration, problems: Sequence[dict[str, str]]) -> tuple[Any, Any]:
    """A model of the Hub or of a folder; or, from a mapping, a random one with a word for every word of the problems."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError("models need: pip install transformers") from error
    if isinstance(configuration.model, dict):
        return random_model(configuration, problems)
    dtype = getattr(torch, configuration.dtype)
    model = AutoModelForCausalLM.from_pretrained(configuration.model, dtype=dtype).to(configuration.device)
    tokenizer = AutoTokenizer.from_pretrained(configuration.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer


def random_model(configuration: Configuration, problems: Sequence[dict[str, str]]) -> tuple[Any, Any]:
    """Llama from the numbers of the configuration; nothing is downloaded."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    split = pre_tokenizers.WhitespaceSplit()
    texts = [ASK, *(problem[name] for problem in problems for name in ("question", "answer"))]
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    ids = {word: index for index, word in enumerate(["<pad>", "<end>", "<unknown>", *words])}
    raw = Tokenizer(models.WordLevel(ids, unk_token="<unknown>"))
    raw.pre_tokenizer = split
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>"
    )
    torch.manual_seed(configuration.seed)
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    shape = LlamaConfig(vocab_size=len(ids), **special, **configuration.model)
    return LlamaForCausalLM(shape).to(configuration.device, getattr(torch, configuration.dtype)), tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configuration", type=Path, help="a YAML file")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="changes to it")
    found = parser.parse_args(arguments)
    try:
        configuration = Configuration.read(found.configuration, found.changes)
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(str(error))
    for numbers in Trainer(configuration).train():
        shown = {name: value if isinstance(value, int) else float(f"{value:.4g}") for name, value in numbers.items()}
        sys.stdout.write(json.dumps(shown) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

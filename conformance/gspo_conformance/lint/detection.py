"""Whose configuration this is: by the trainer that it names, else by the keys that only one trainer has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..trainers.dialect import Inexpressible
from ..trainers.room import rooms
from ..words import UsageError, cut
from .bases import ENDINGS
from .configuration import source_text
from .sections import own_names
from .uncertain import counts

# In this order: what builds on another trainer stands before it.
NAMED: dict[str, str] = {
    "art": r"\bopenpipe[-_]art\b|\bart\.(dev\.\w|TrainConfig|TrainableModel|TrajectoryGroup|gather_traj|local|serverless)|\bfrom art\.(local|serverless|rewards)\b",
    "unsloth_mlx": r"\bunsloth_zoo\.mlx\b|\bunsloth\b.*\bMLXGRPO",
    "unsloth": r"\b(from|import) unsloth\b|\bFastLanguageModel\b|\bpip install\b[\w \-=.]*\bunsloth\b",
    "mlx_lm_lora": r"\bmlx_lm_lora\b|\bmlx-lm-lora\b",
    "ms_swift": r"\bswift (rlhf|sft)\b|\bmegatron rlhf\b|\bfrom swift\b|\brlhf_type\b",
    "easydel": r"\beasydel\b",
    "liger": r"\bLigerFusedLinearGRPOLoss\b",
    "textpolicy": r"\btextpolicy\b",
    "stateset_agents": r"\bstateset_agents\b",
    "molt": r"\bmolt\.cli\b",
    "openrlhf": r"\bopenrlhf\.cli\b",
    "skyrl": r"\bskyrl(_train|\.)|\bskyrl\b.*\bmain_base\b|\btrainer\.algorithm\.[\w.]+[\"']?\s*[=:]",
    "nemo_rl": r"\bnemo_rl\b|\bnemo-rl\b|\brun_grpo_\w+\.py\b",
    "cosmos_rl": r"\bcosmos[-_]rl\b|\btrain\.train_policy\b",
    "areal": r"\bareal\b",
    "tunix": r"\btunix\b",
    "agilerl": r"\bagilerl\b|^INIT_HP:",
    "pipelinerl": r"\bpipelinerl\b|\bfinetune\.rl\.\w+[\"']?\s*[=:]",
    "miles": r"\b(from|import) miles\b|\bmiles\.(utils|ray|rollout|backends)\b|(?<!/home)(?<!/Users)/miles\b|\bMILES_[A-Z]+",
    "slime": r"\bslime\b|--(advantage-estimator|calculate-per-token-loss|hf-checkpoint|num-steps-per-rollout)\b",
    "trinity_rft": r"\btrinity[-_]rft\b|\bTrinity-RFT\b|\btrinity\.(algorithm|common|trainer|cli)\b|\btrinity run\b|^ *(algorithm_type|policy_loss_fn_args|kl_loss_fn|explorer_input): *\S*$",
    "easyr1": r"\bworker\.(actor|rollout|ref)\.\w+|\bverl\.trainer\.main\b(?!_)|\b[Ee]asy_?[Rr]1\b",
    "verl": r"\bverl\.(trainer|workers)\b|\bactor_rollout_ref\b",
    "roll": r"\broll\.(pipeline|configs)\b|\bstart_rlvr_pipeline\b|\bpg_clip\b|\bnum_return_sequences_in_group\b",
    "trl": r"\b(from|import) trl\b|\btrl grpo\b|\btrl\.GRPO",
}
# Trainers that are not known here, by what tells them from the one that they began as.
FORKS: dict[str, str] = {
    "AReaL up to 0.3": r"^ppo\.(ppo_n_minibatches|gen\.max_new_tokens)$|\brealhf\.experiments\b",
    "LightRFT": r"\blightrft\.\w+|\btrain_colocate\.py\b",
    "MARTI": r"\bmarti\.(cli|models|trainer)\.\w+|\bmulti_agent_train_ppo_ray\b",
    "MaxText": r"\bmaxtext\.trainers\.\w+|^rl\.grpo_(beta|epsilon)$",
    "MindSpeed-RL": r"^rl_config\.\w+",
    "miniRL": r"\b(from|import) minirl\b",
    "rLLM without verl": r"\brllm/backend=(?!verl)\w+",
    "siiRL": r"\bsiirl\.\w+",
}
# Trainers that are not known here and began as none that is: a file that names one that is known is one of that.
UNKNOWN: dict[str, str] = {
    "AReno": r"\b(from|import) areno\b|\bareno\.\w+",
    "ChatLearn": r"\bchatlearn[/.]\w+",
    "ColossalChat": r"\bcoati\.\w+",
    "Lumen-RL": r"\blumenrl\b",
    "oat": r"\boat\.(experiment|algorithms)\b",
    "open-instruct": r"\bopen_instruct[/.]\w+",
    "RL2": r"\bRL2\.trainer\.\w+",
    "RLinf": r"\brlinf\b|^cluster\.component_placement\b",
    "torchforge": r"\bapps\.grpo\.main\b",
    "torchtitan": r"\btorchtitan\.\w+",
    "TorchRL": r"\btorchrl\.objectives\b",
    "torchtune": r"\btorchtune\.\w+|\btune run\b",
    "UniRL": r"\bunirl\.\w+",
    "XTuner": r"\bxtuner\.\w+",
}
# What else these trainers do, by its programs and keys; a file that names a policy optimisation too is one of that.
ELSEWHERE: dict[str, str] = {
    "ms_swift": r"\b(swift|megatron) (sft|pt)\b",
    "miles": r"--loss-type[ =]sft_loss\b",
    "molt": r"\bmolt\.cli\.(?!train_rl)\w+",
    "openrlhf": r"\bopenrlhf\.cli\.(?!train_ppo)\w+",
    "nemo_rl": r"\brun_(sft|dpo|rm|ppo|eval|distillation)\w*\.py\b|^(sft|dpo|rm|ppo|distillation)\.\w+",
    "slime": r"--loss-type[ =]sft_loss\b",
    "verl": r"\bverl\.trainer\.(\w*sft\w*|main_generation\w*)|\bsft_trainer\w*|^data\.messages_key$|^model\.partial_pretrain$",
}
# Keys whose values say that a file is of another part, or of another method.
BESIDE: dict[str, str] = {"_target_": r"verl\.workers\.config\.(?!\w*Actor)\w+", "rl": r"(?!grpo|gdpo)\w+"}
POLICY = r"(?i)g[rs]po|main_ppo|train_ppo"
# Fewer keys than this tell a trainer only where they are one in ten or more of all there are.
ENOUGH, SHARE = 5, 10
# Who reads the same keys: nothing but a name tells the others from the first.
SAME_KEYS = (
    ("trl", "unsloth", "unsloth_mlx", "easydel", "liger", "mlx_lm_lora", "ms_swift", "art"),
    ("slime", "miles"),
    ("openrlhf", "molt"),
)


def recognised(words: Sequence[str], settings: Mapping[str, Any]) -> tuple[str, str]:
    """The name of the trainer and by what it was recognised; a `UsageError` where that leaves a choice."""
    text = "\n".join(_plain(word) for word in words)
    everything = "\n".join((text, *map(str, settings)))
    _refuse(FORKS, everything)
    for name, pattern in NAMED.items():
        if match := re.search(pattern, text, re.M):
            return _policy(name, words, settings, everything), repr(match[0])
    _refuse(UNKNOWN, everything)
    counts = {name: _read(name, settings) for name in rooms()}
    most = max(counts.values())
    first = [name for name, count in counts.items() if count == most]
    for same in SAME_KEYS:
        if len(first) > 1 and set(first) <= set(same):
            first = [same[0]]
    if most < 2 or len(first) > 1 or (most < ENOUGH and most * SHARE < len(settings)):
        if not settings:
            raise UsageError(f"{cut(', '.join(words), 400)}: no setting in it")
        raise UsageError(f"expected --dialect: {_candidates(first, most, len(settings))}")
    return _policy(first[0], words, settings, everything), f"{most} of its keys"


def _refuse(trainers: Mapping[str, str], text: str) -> None:
    """A `UsageError` where the text names one of these trainers."""
    for name, pattern in trainers.items():
        if match := re.search(pattern, text, re.M):
            raise UsageError(f"this is a configuration of {name} ({match[0]}), whose keys are known to no dialect here")


def _policy(name: str, words: Sequence[str], settings: Mapping[str, Any], text: str) -> str:
    """The name; a `UsageError` where this is other training, such as on demonstrations or on pairs, or a file beside the training."""
    beside = [f"{key}: {settings[key]}" for key, other in BESIDE.items() if re.match(other, str(settings.get(key, "")))]
    match = re.search(ELSEWHERE.get(name, r"(?!)"), text, re.M)
    if beside or ((match or _unread(name, words, settings)) and not re.search(POLICY, text)):
        told = cut(beside[0]) if beside else match[0] if match else cut(", ".join(words), 400)
        raise UsageError(
            f"{told}: no policy optimisation that the dialect of {name} reads; --dialect {name} reads it all the same"
        )
    return name


def _unread(name: str, words: Sequence[str], settings: Mapping[str, Any]) -> bool:
    """Whether files of keys, which stand on no others, have none that the trainer's policy optimisation reads, or those of data alone."""
    bare = rooms()[name].dialect.read({}, rooms()[name].default)
    alone = all(word.endswith(ENDINGS) for word in words) and "defaults" not in settings
    return alone and not any(counts(key, bare) and not key.startswith("data.") for key in settings)


def _candidates(first: Sequence[str], most: int, keys: int) -> str:
    """Why the settings do not say whose they are."""
    if not most:
        return f"none of the {keys} keys here is one of {', '.join(sorted(rooms()))}"
    if len(first) > 1:
        return f"this could be of {', '.join(sorted(first))}"
    return f"only {most} of the {keys} keys here {'is one' if most == 1 else 'are keys'} of {first[0]}"


def _plain(word: str) -> str:
    """What a file says, of a notebook its cells without what they have printed; the word itself where it is no file."""
    path = Path(word)
    try:
        return source_text(path) if path.is_file() else word
    except (OSError, ValueError):
        return word


def _read(name: str, settings: Mapping[str, Any]) -> int:
    """How many of the settings this dialect reads; none where they are arguments in a program that names the trainer."""
    room = rooms()[name]
    if room.dialect.in_programs_alone:
        return 0
    names = own_names(settings, room.dialect)
    own = {names.get(key, key): value for key, value in settings.items()}
    try:
        return len(room.dialect.read(own, room.default).given)
    except Inexpressible:
        return max(1, len(room.dialect.read({}, room.default).settings.keys() & own.keys()))
    except Exception:  # values of another trainer's keys
        return 0

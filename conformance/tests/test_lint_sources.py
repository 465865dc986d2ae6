"""Configurations as people have them: constants, notebooks, shell variables, references between keys. Nothing is executed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from gspo_conformance.lint.configuration import Configuration, read_configuration

from .linted import written

SCRIPT = r"""#!/bin/bash
set -xeuo pipefail
loss_mode=gspo
export low=3e-4 high="${HIGH:-4e-4}"   # as the paper
: "${AGG:="token-mean"}"
batch=512
mini=$((batch / 4))
if [ "$1" = long ]; then length=4096; else length=2048; fi
if [ -n "$2" ]; then
  steps=1
else
  steps=2
fi
EXTRA=(
    a.lr=1e-6   # inside
    b=2
)
CUDA_VISIBLE_DEVICES=0 python3 -m trainer \
    a.loss_mode=${loss_mode} \
    a.low="$low" a.high=$high \
    a.agg=$AGG \
    a.mini=$mini a.steps=${steps} \
    a.files="['$HOME/x']" \
    --clip-range 3e-4 4e-4 --use-kl \
    --eps 2e-4 "${EXTRA[@]}" $@ 2>&1 | tee log
echo done
"""
PYTHON = """
LOW, ACCUMULATE = 3e-4, 8
EPSILON = 3e-4
STEPS: int = 2
more = dict(loss_type="dapo", beta=0.04)
sft = SFTConfig(loss_type="nll", gradient_accumulation_steps=16)
args = GRPOConfig("out", epsilon=EPSILON, steps_per_generation=STEPS * 4, top_p=unknown(), delta=LOW,
    reward_norm=NormConfig(mean_level="group"), **more)
args.loss_type = "grpo"
other.loss_type = "bnpo"
for STRIDE in range(3): pass
last = GRPOArgs(stride=STRIDE)
"""


def _read(folder: Path, name: str, text: str) -> Configuration:
    return read_configuration([written(folder, name, text)])


def test_the_variables_of_a_script_stand_where_it_puts_them(tmp_path: Path) -> None:
    """Hunts `loss_mode=${loss_mode}`, as verl's own recipes have it, read as the mode `${loss_mode}`."""
    found = _read(tmp_path, "run.sh", SCRIPT)
    actor = {"a.loss_mode": "gspo", "a.low": 3e-4, "a.high": 4e-4, "a.agg": "token-mean", "a.mini": 128, "a.lr": 1e-6}
    flags = {"clip_range": [3e-4, 4e-4], "use_kl": True, "eps": 2e-4}
    assert found.settings == {**actor, **flags, "b": 2}
    assert found.unread == {"a.steps", "a.files"}
    assert found.places["a.mini"].endswith("run.sh:22")


def test_a_comment_ends_a_continued_command(tmp_path: Path) -> None:
    found = _read(tmp_path, "run.sh", "run a=1 \\\n# b=2 \\\n  c=3\n")
    assert "b" not in found.settings
    assert found.settings["a"] == 1


def test_a_file_of_nothing_but_settings(tmp_path: Path) -> None:
    assert _read(tmp_path, "overrides.txt", "eps_clip=3e-4\nkl=0\n").settings == {"eps_clip": 3e-4, "kl": 0}


def test_the_constants_of_a_program_and_what_it_sets_later(tmp_path: Path) -> None:
    """Hunts the settings of an SFT that stands in the same file, and a dictionary of keywords taken for computed."""
    found = _read(tmp_path, "run.py", PYTHON)
    assert found.settings == {
        "epsilon": 3e-4,
        "steps_per_generation": 8,
        "reward_norm.mean_level": "group",
        "loss_type": "grpo",
        "beta": 0.04,
    }
    assert found.unread == {"top_p", "delta", "stride"}


def test_what_is_replaced_in_a_configuration(tmp_path: Path) -> None:
    """Hunts settings that a program changes by the name of the field, in whatever order the tree is walked."""
    text = """
args = GRPOConfig(beta=0.04, epsilon=0.2, delta=2.0)
if True:
    setattr(args, "epsilon", 3e-4)
other = dataclasses.replace(args, beta=0.0, **more)
setattr(unknown, "beta", 1.0)
setattr(args, "delta", read())
"""
    found = _read(tmp_path, "run.py", text)
    assert found.settings == {"beta": 0.0, "epsilon": 3e-4}
    assert found.unread == {"delta", "**keywords of replace"}


def test_a_notebook_and_one_saved_as_a_script(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["GRPOConfig(epsilon=1)"]},
        {"cell_type": "code", "source": ["%%capture\n", "!pip install unsloth\n", "import os"]},
        {"cell_type": "code", "source": "args = GRPOConfig(epsilon = 3e-4)"},
    ]
    assert _read(tmp_path, "n.ipynb", json.dumps({"cells": cells})).settings == {"epsilon": 3e-4}
    assert _read(tmp_path, "n.py", "%%capture\n!pip install x\nGRPOConfig(epsilon=3e-4)").settings == {"epsilon": 3e-4}
    modulo = "name = ('a %s'\n  % 1)\nGRPOConfig(beta=0)"
    assert _read(tmp_path, "m.py", modulo).settings == {"beta": 0}


def test_references_between_keys(tmp_path: Path) -> None:
    text = """
actor: {clip: 3e-4, low: "${actor.clip}", high: "${.clip}", up: {n: "${..clip}"}, env: "${oc.env:HIGH,4e-4}"}
n: 8
size: ${mul:${n}, ${mul:2,2}}
half: ${div:${n},2}
loop: ${loop}
elsewhere: ${defaults.x}
hidden: ${oc.env:SECRET}
"""
    found = _read(tmp_path, "c.yaml", text)
    actor = {f"actor.{key}": 3e-4 for key in ("clip", "low", "high", "up.n")}
    assert found.settings == {**actor, "actor.env": 4e-4, "n": 8, "size": 32, "half": 4}
    assert found.unread == {"loop", "elsewhere", "hidden"}
    assert found.places["size"].endswith("c.yaml:4")


def test_a_reference_follows_an_override(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: 1\nb: ${a}\n", encoding="utf-8")
    assert read_configuration([str(tmp_path / "c.yaml"), "a=5"]).settings == {"a": 5, "b": 5}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.sh", "A=xxxxxxxxxx\n" + "".join(f"{b}={'$' + a}{'$' + a}\n" for a, b in zip("ABCDEFGHIJKLMNOPQRS", "BCDEFGHIJKLMNOPQRST", strict=True)) + "x --k $T\n"),
        ("d.sh", "run " + "--a 1 \\\n" * 10_000),
        ("e.sh", "A=" + "1" * 150 + "\n" + ("run " + "$A" * 2400 + "\n") * 20),
        ("f.sh", "eval " * 1900 + "run --a 1\n"),
        ("c.py", "".join(f"{b} = [{a}, {a}]\n" for a, b in zip("ABCDEFGHIJKLMNOPQRSTUVWX", "BCDEFGHIJKLMNOPQRSTUVWXY", strict=True)) + "GRPOConfig(x=Y)\n"),
        ("d.py", "a = " + repr(list(range(9000))) + "\n" + "a = 1\n" * 3000 + "GRPOConfig(x=a)\n"),
        ("e.py", "A = 9 ** 9\nGRPOConfig(x=" + "9999999999 * " * 300 + "9)\n"),
        ("c.yaml", "a: ${mul:${b},${b}}\nb: ${mul:${a},${a}}\n"),
    ],
)  # fmt: skip
def test_what_grows_without_end_is_left_alone(tmp_path: Path, name: str, text: str) -> None:
    begin = time.process_time()
    found: Any = _read(tmp_path, name, text)
    assert time.process_time() - begin < 3
    assert len(repr(found.settings)) < 2000


def test_a_dictionary_of_keywords_that_is_changed_before_it_is_unpacked(tmp_path: Path) -> None:
    """Hunts the clip range of the default, where the program sets the paper's by `settings["epsilon"] = ..`."""
    plain = 's = {"loss_type": "grpo"}\ns["epsilon"] = 3e-4\ns.update(beta=0.0)\nGRPOConfig(**s)'
    assert _read(tmp_path, "a.py", plain).settings == {"loss_type": "grpo", "epsilon": 3e-4, "beta": 0.0}
    for change in ('s.pop("loss_type")', "s.update(more)", "s[key] = 1", 's["a"]["b"] = 1', 'del s["loss_type"]'):
        found = _read(tmp_path, "b.py", f's = dict(loss_type="grpo")\n{change}\nGRPOConfig(**s)')
        assert found.unread == {"**keywords of GRPOConfig"}, change


def test_calls_of_one_configuration_that_differ_are_told(tmp_path: Path) -> None:
    """Hunts two experiments in a file that were read as one; sections of one configuration may differ."""
    calls = "a = GRPOConfig(epsilon=0.2, lr=1)\nb = GRPOConfig(epsilon=3e-4, lr=1)\n"
    found = _read(tmp_path, "a.py", calls)
    assert (found.settings["epsilon"], dict(found.repeated)) == (3e-4, {"epsilon": 1})
    norms = 'PPOActorConfig(reward_norm=NormConfig(mean_level="group"), adv_norm=NormConfig(mean_level="batch"))'
    others = "OptimizerConfig(lr=1)\nOptimizerConfig(lr=2)\n"
    assert not _read(tmp_path, "b.py", others + norms).repeated

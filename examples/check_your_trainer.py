"""From a wrong loss to a verdict, a diagnosis and the fix.

    pip install 'gspo[torch,conformance]'
    python examples/check_your_trainer.py

`in_house_loss` is GSPO as someone may write it from memory. It trains, its curve goes up, and two things about it are
wrong. The suite asks it some hundred questions, names both, and says what they do to a step. With one mended it names the
other; with both mended it conforms. Yours is asked in one line:

    run = check(loss_target(my_loss, framework="torch"))

and in a test `assert run.conforming` is the other. On the command line: `gspo check my_trainer:target`.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import sys
from collections.abc import Callable, Sequence
from textwrap import fill

import torch
from torch import Tensor

from gspo_conformance import check, loss_target
from gspo_conformance.run import Run

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def in_house_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    lengths = mask.sum(-1).clamp(min=1)
    ratio = (((logp - old_logp) * mask).exp() * mask).sum(-1) / lengths
    clipped = ratio.clamp(1 - 3e-4, 1 + 4e-4)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    return (loss[:, None] * mask).sum() / mask.sum()


def with_the_ratio_mended(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    lengths = mask.sum(-1).clamp(min=1)
    ratio = (((logp - old_logp) * mask).sum(-1) / lengths).exp()
    clipped = ratio.clamp(1 - 3e-4, 1 + 4e-4)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    return (loss[:, None] * mask).sum() / mask.sum()


def with_both_mended(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    lengths = mask.sum(-1).clamp(min=1)
    ratio = (((logp - old_logp) * mask).sum(-1) / lengths).exp()
    clipped = ratio.clamp(1 - 3e-4, 1 + 4e-4)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    return loss.mean()


ATTEMPTS: tuple[Loss, ...] = (in_house_loss, with_the_ratio_mended, with_both_mended)


def report(run: Run) -> str:
    """The verdict; where it is bad, the diagnosis, what it does to a step, and the most telling question."""
    bad, good = len(run.offences), run.counts["pass"]
    lines = [f"  conforming: {good} of {good} answers" if run.conforming else f"  NOT conforming: {bad} wrong answers"]
    if run.diagnosis and not run.conforming:
        question, (loss, *_) = run.offences[0].id, run.offences[0].judged
        example = f"{question}: a loss of {float(loss.got):.4g}, where {float(loss.expected):.4g} is right"
        lines += [
            paragraph("diagnosis", run.diagnosis["sentence"]),
            paragraph("effect", run.diagnosis["effect"]),
            paragraph("for example", example),
            paragraph("see", "; ".join(f"gspo explain {clause}" for clause in run.diagnosis["clauses"])),
        ]
    if run.remarks:
        lines.append(paragraph("below MUST", f"{len(run.remarks)} answers fail nothing; --level SHOULD asks for them"))
    return "\n".join(lines)


def paragraph(name: str, text: str) -> str:
    """A name and a text, wrapped to a terminal."""
    return fill(text, 110, break_on_hyphens=False, initial_indent=f"  {name:12}", subsequent_indent=" " * 14)


def change(before: Loss, after: Loss) -> str:
    """The lines of the body that differ."""
    bodies = ([line.strip() for line in inspect.getsource(loss).splitlines()[1:]] for loss in (before, after))
    marked = difflib.ndiff(*bodies)
    return "\n".join(f"    {line}" for line in marked if line[0] in "-+")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    before = None
    for loss in ATTEMPTS:
        if before:
            sys.stdout.write(f"\nthe fix\n{change(before, loss)}\n\n")
        run = check(loss_target(loss, framework="torch"))
        sys.stdout.write(f"{loss.__name__}\n{report(run)}\n")
        before = loss


if __name__ == "__main__":
    main()

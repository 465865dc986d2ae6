"""Problems in the format of GSM8K: where they come from, and whether a response answers one.

A problem has a `question` and an `answer`, a worked solution that ends in `#### 42`. A response is right if the number behind
its last `####` is that number: 1,000 is 1000, $18 and 18 dollars are 18, 3.0 is 3. Numbers are compared as decimals, exactly.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path

MARK = "####"
NUMBER = re.compile(
    r"""\s* =? \s*
        (?P<minus> [-−–])? \s* [$€£]? \s* (?P<late_minus> [-−])?  # -$5 and $-5
        (?P<digits> \d{1,3} (?:,\d{3})+ (?:\.\d+)? | \d+ (?:\.\d+)? | \.\d+ )
        (?! [\d,./:]* \d )                                        # not the beginning of 1,2 or 1/2 or 1.000.000 or 12:30
    """,
    re.VERBOSE,
)


def final_number(text: str) -> Decimal | None:
    """The number behind the last `####`, None where there is none.

    >>> final_number("7 * 6 = 42\\n#### 42"), final_number("#### $1,234.50 in total"), final_number("42")
    (Decimal('42'), Decimal('1234.50'), None)
    """
    _, mark, last = text.rpartition(MARK)
    found = NUMBER.match(last.partition("\n")[0]) if mark else None
    if found is None:
        return None
    value = Decimal(found["digits"].replace(",", ""))
    return -value if found["minus"] or found["late_minus"] else value


def reward(response: str, answer: str) -> float:
    """1 where the response ends in the number that the answer ends in, else 0."""
    expected = final_number(answer)
    if expected is None:
        raise ValueError(f"answer: expected a solution that ends in '{MARK} NUMBER', got {answer[-40:]!r}")
    return float(final_number(response) == expected)


def load_problems(source: str, split: str = "train") -> list[dict[str, str]]:
    """A file of JSON lines, or a data set of the Hugging Face Hub or of a folder, such as openai/gsm8k."""
    if Path(source).is_file():
        lines = Path(source).read_text(encoding="utf-8").splitlines()
        problems = [json.loads(line) for line in lines]
    else:
        problems = _hub_problems(source, split)
    for problem in problems:
        if not {"question", "answer"} <= problem.keys():
            raise ValueError(f"{source}: expected problems with question and answer, got one with {', '.join(problem)}")
    return problems


def _hub_problems(source: str, split: str) -> list[dict[str, str]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"{source} is no file, and a data set needs: pip install datasets") from error
    name = "main" if source.endswith("gsm8k") else None
    return [dict(problem) for problem in load_dataset(source, name, split=split)]

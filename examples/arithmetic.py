"""The task of the training examples: additions, and whether an answer is right.

A question is `47+38=`. Its answer is written as one adds by hand, last digit first, and ended by a full stop: `58.`.
The reward needs no model: 1 where the answer is right, full stop included, and 0 otherwise. Of the 10,000 questions
1,000 are held out; the answers to another 1,000 are shown in a warm-up, and the rest are only ever rewarded.

>>> question = np.asarray([4738, 9999, 5])
>>> text(prompts(question)), text(answers(question))
(['47+38=', '99+99=', '00+05='], ['58..', '891.', '5...'])
"""

from __future__ import annotations

import numpy as np

SYMBOLS = "0123456789+=."
END = SYMBOLS.index(".")
PROMPT, ANSWER = 6, 4  # tokens; the longest answer is 891. for 198
QUESTIONS = np.random.default_rng(0).permutation(10_000)
HELD_OUT, SHOWN, REWARDED = QUESTIONS[:1000], QUESTIONS[1000:2000], QUESTIONS[1000:]


def prompts(questions: np.ndarray) -> np.ndarray:
    """`[n, 6]` tokens: question 4738 is 47+38=."""
    plus, equals = (np.full_like(questions, SYMBOLS.index(symbol)) for symbol in "+=")
    tens, ones, other_tens, other_ones = (questions // power % 10 for power in (1000, 100, 10, 1))
    return np.stack([tens, ones, plus, other_tens, other_ones, equals], axis=1)


def answers(questions: np.ndarray) -> np.ndarray:
    """`[n, 4]` tokens: the right answers, filled up with full stops."""
    total = (questions // 100 + questions % 100)[:, None]
    powers = 10 ** np.arange(ANSWER)
    written = (total >= powers) | (powers == 1)
    return np.where(written, total // powers % 10, END)


def counted(responses: np.ndarray) -> np.ndarray:
    """`[n, 4]`: whether a token belongs to its response. The first full stop does: it was sampled (GSPO-DATA-4)."""
    ends = responses == END
    return np.cumsum(ends, axis=1) - ends == 0


def rewards(questions: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """`[n]`: 1 for a right answer, else 0.

    >>> rewards(np.asarray([4738, 4738, 4738]), np.asarray([[5, 8, 12, 3], [5, 8, 3, 12], [8, 5, 12, 12]]))
    array([1., 0., 0.], dtype=float32)
    """
    written = np.where(counted(responses), responses, END)
    return np.all(written == answers(questions), axis=1).astype(np.float32)


def text(tokens: np.ndarray) -> list[str]:
    """Tokens as strings."""
    return ["".join(SYMBOLS[token] for token in row) for row in tokens]

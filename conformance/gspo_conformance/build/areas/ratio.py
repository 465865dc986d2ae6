"""Ratios: per token, per sequence (eq. 7), GSPO-token (eq. 14) and the product of the relatives."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..cases import Responses, explicit, packed, padded, responses
from ..recipe import Case, Shelf, call, clip, grpo, gspo, gspo_token, loss, objective

RECIPES = Shelf("ratio")
LN2 = 0.693359375
KINDS = {
    "token": ("RATIO-1", "the ratio of each token"),
    "sequence": ("RATIO-2", "the length-normalised ratio of the whole response (eq. 7)"),
    "gspo_token": ("RATIO-3 RATIO-2", "numerically the sequence ratio at every token (eq. 14)"),
    "product": ("RATIO-7", "the product over the response, without length normalisation"),
}
_add = RECIPES.add


def ratio(kind: str, source: Responses, **layout: Any) -> Case:
    """The ratio itself, padded."""
    return call("ratio", padded(source, **layout), "ratio", kind=kind)


def ragged() -> Responses:
    """Lengths 5, 1, 3, 8; mean log-ratios of both signs."""
    return responses("ratio/ragged", [5, 1, 3, 8], [0.03, -0.25, 0.125, -0.02], spread=0.5)


def far_tokens() -> Responses:
    """Mean log-ratios of about the paper's range from tokens beyond the caps that some trainers put on each."""
    step = 2.0**-12
    rows = [[16.0, -16.0 + step], [-12.5, 12.5, -8 * step], [14.0, -7.0, -7.0, 2 * step], [11.0, -11.0 - step]]
    return explicit(rows, old=-18.0).also(advantages=[1.0, -0.75, 0.5, -1.25])


for _kind, (_clauses, _what) in KINDS.items():
    _slug = _kind.replace("_", "-")
    _flags = "ratio-inverted padded-length" + (
        " arithmetic-mean-ratio no-length-normalisation" if _kind != "token" else ""
    )
    _add(f"{_slug}-ragged", f"Unequal lengths: {_what}", _clauses, _flags, lambda k=_kind: ratio(k, ragged()))
    _add(
        f"{_slug}-opposite-tokens",
        "Two tokens that moved as far up as down: the sequence ratio is exactly 1, the token ratios are 2 and 1/2",
        _clauses,
        "arithmetic-mean-ratio token-clip",
        lambda k=_kind: ratio(k, explicit([[LN2, -LN2], [LN2, LN2], [-LN2], [LN2, -LN2, LN2, -LN2]])),
    )
    _add(
        f"{_slug}-holes",
        "Counted tokens with gaps: tool output sits inside the response and is neither read nor counted",
        _clauses + " RATIO-4 DATA-4",
        "tool-tokens padded-length",
        lambda k=_kind: ratio(
            k,
            responses("ratio/holes", [4, 3, 5, 1], [0.2, -0.15, 0.1, -0.3], spread=0.4),
            masks="110011000 010101000 101011010 000010000",
            fill={"logp": -9.0, "old_logp": -2.5},
        ),
    )
    _add(
        f"{_slug}-on-policy",
        "The same policy: every ratio is exactly 1",
        _clauses + " RATIO-8",
        "rescoring",
        lambda k=_kind: _on_policy(k),
    )


def _on_policy(kind: str) -> Case:
    source = responses("ratio/on-policy", [7, 2, 1, 4], [0.0] * 4)
    same = Responses({"logp": source.rows["old_logp"], "old_logp": source.rows["old_logp"]})
    return call("ratio", padded(same), "ratio", fields={"exact": ("ratio",)}, kind=kind)


_add(
    "extreme-tokens",
    "Log-ratios 100 and -10 in one response: the mean is 45; a clamp per token before the mean gives 5",
    "RATIO-2 RATIO-6",
    "token-clamp",
    lambda: ratio("sequence", explicit([[100.0, -10.0], [25.0, -24.0], [30.0, -29.5, 1.0], [0.5]], old=-128.0)),
)
_add(
    "cancelling-extremes",
    "Log-ratios 100 and -100 cancel: the ratio is exactly 1",
    "RATIO-2",
    "token-clamp arithmetic-mean-ratio",
    lambda: ratio("sequence", explicit([[100.0, -100.0], [90.0, -89.0], [50.0, -25.0, -25.0], [0.5]], old=-128.0)),
)
for _name, _objective in {"gspo": gspo(), "gspo-token": gspo_token()}.items():
    _add(
        f"far-tokens-{_name}",
        "Tokens whose probability moved by factors of e^11 to e^16 and cancel: the sequence ratio stays near 1",
        "RATIO-2 RATIO-6",
        "token-clamp arithmetic-mean-ratio",
        lambda o=_objective: loss(o, padded(far_tokens())),
    )
_add(
    "within-band-means",
    "Mean log-ratios of a few 1e-4, tokens a hundred times as large: the scale of the paper's clip range",
    "RATIO-2 RATIO-5",
    "sum-before-subtract low-precision-loss",
    lambda: ratio("sequence", responses("ratio/band", [24, 16, 31], [2e-4, -2.5e-4, 5e-4], spread=0.03)),
)
_add(
    "one-token",
    "Responses of one token: sequence ratio and token ratio are the same number",
    "RATIO-2 RATIO-4",
    "off-by-one",
    lambda: ratio("sequence", explicit([[0.25], [-0.5], [0.0], [0.0625]])),
)
_add(
    "square-batch",
    "As many responses as tokens, unequal lengths: a division that broadcasts the wrong way still has a legal shape",
    "RATIO-2 RATIO-4",
    "shape-broadcast",
    lambda: ratio("sequence", responses("ratio/square", [4, 2, 1, 3], [0.3, -0.2, 0.1, -0.4], spread=0.3), width=4),
)
_add(
    "wide-padding",
    "Two short responses in a batch twenty wide: |y| is the number of counted tokens, not the width",
    "RATIO-2 RATIO-4",
    "padded-length",
    lambda: ratio("sequence", explicit([[5e-1, 2.5e-1], [-0.125, -0.375, 0.0]]), width=20),
)
_add(
    "leading-padding",
    "Left padding: where the counted tokens stand does not matter",
    "RATIO-2 DATA-1",
    "off-by-one",
    lambda: ratio(
        "sequence",
        responses("ratio/left", [3, 2, 4, 1], [0.2, -0.3, 0.1, -0.05], spread=0.3),
        masks="000000111 000000011 000001111 000000001",
        fill={"logp": -1.0, "old_logp": -4.0},
    ),
)
_add(
    "constant-shift",
    "A second response with every log-ratio larger by 1/4: its ratio is larger by e^(1/4) exactly, whatever the length",
    "RATIO-2",
    "no-length-normalisation",
    lambda: ratio(
        "sequence", explicit([[0.5, -0.75, 0.125], [0.75, -0.5, 0.375], [0.125, 0.5, -0.75], [1.0, -0.25, 0.625]])
    ),
)
_add(
    "empty-response",
    "A response without a counted token: its ratio is 1",
    "RATIO-2 DATA-3",
    "empty-nan",
    lambda: ratio("sequence", explicit([[0.25, 0.5], [], [-0.25], [0.125]])),
    level="SHOULD",
    note="The paper has no empty response. Convention: mean log-ratio 0, ratio 1, contribution 0.",
)
_add(
    "turns",
    "Two turns in one response, tool output between: one ratio over both turns, not one per turn",
    "RATIO-2 DATA-4",
    "turn-ratio",
    lambda: ratio(
        "sequence",
        explicit([[0.5, 0.5, -0.25, -0.25, -0.25], [0.125, 0.0, 0.25, 0.5, 0.0], [0.5, -0.25], [0.25]]),
        masks="110011100 100111100 100000001 010000000",
        fill={"logp": -0.5, "old_logp": -3.0},
    ),
)
_add(
    "eos-counts",
    "The last sampled token, end-of-sequence, carries most of the change: it counts, once",
    "RATIO-4 DATA-4 DATA-1",
    "eos-dropped",
    lambda: ratio("sequence", explicit([[0.0, 0.0, 0.5], [0.125, -1.0], [-0.75], [0.0, 0.25]])),
)
_add(
    "first-token-counts",
    "The first sampled token carries most of the change: a shift by one loses it",
    "RATIO-4 DATA-4 DATA-1",
    "off-by-one",
    lambda: ratio(
        "sequence",
        explicit([[0.5, 0.0, 0.0], [-1.0, 0.125], [0.75], [0.25, -0.5]]),
        masks="001110000 011000000 000100000 011000000",
        fill={"logp": -0.5, "old_logp": -2.5},
    ),
)
_add(
    "packed-segments",
    "Packed: one ratio for each segment",
    "RATIO-2 PACK-2",
    "packed-one-ratio",
    lambda: call("ratio", packed(ragged(), trailing=15, fill=-1.0), "ratio", kind="sequence"),
)
_add(
    "packed-tokens",
    "Packed: the sequence ratio at every token of its segment",
    "RATIO-3 PACK-2",
    "packed-one-ratio broadcast-ratio",
    lambda: call("ratio", packed(ragged(), trailing=15), "ratio", kind="gspo_token"),
)
_add(
    "centred",
    "Responses that all moved up: subtracting a batch average from the log-ratios hides it",
    "RATIO-2",
    "batch-centring",
    lambda: ratio("sequence", responses("ratio/centred", [6, 4, 5, 2], [0.3, 0.35, 0.25, 0.375], spread=0.2)),
)


def _capped(ratio_kind: str, cap: float) -> Case:
    source = explicit([[1.5, 0.5], [3.0, 1.0, 4.0], [-2.0], [2.5]], old=-8.0).also(advantages=[1.0, -0.5, 0.75, -1.0])
    return loss(objective(ratio_kind, clip(0.2, 0.27), log_ratio_cap=cap), padded(source))


for _kind in ("sequence", "token", "gspo_token"):
    _add(
        f"cap-{_kind.replace('_', '-')}",
        "A cap on the log-ratio: the value is held and the gradient stops",
        "RATIO-6",
        "exponent-cap",
        partial(_capped, _kind, 2.0),
        level="MAY",
        note="The paper has no cap. Convention: log-ratio min(l, c), gradient 0 where l > c.",
    )


def _uncapped(objective_: dict[str, Any]) -> Case:
    source = explicit([[12.0, 11.0, 13.0], [0.25, -0.125], [11.5], [-0.25]], old=-16.0).also(
        advantages=[-1.0, 0.5, -0.25, 0.75]
    )
    return loss(objective_, padded(source))


_add(
    "no-cap",
    "Mean log-ratio 12 and A < 0: the paper has no cap, so the gradient is large, not zero",
    "RATIO-6 GRAD-1",
    "exponent-cap",
    partial(_uncapped, gspo()),
)
_add(
    "no-cap-token",
    "Token log-ratios about 12 and A < 0 in GRPO: no cap",
    "RATIO-6",
    "exponent-cap",
    partial(_uncapped, grpo()),
)


def _second_minibatch(objective_: dict[str, Any]) -> Case:
    source = responses("ratio/second", [6, 4, 9, 2], [1e-4, 2.5e-4, -2e-4, 6e-4], spread=0.02).also(
        advantages=[0.75, -1.25, 0.5, -0.25]
    )
    return loss(objective_, padded(source))


for _name, _objective in {"gspo": gspo(), "gspo-token": gspo_token()}.items():
    _add(
        f"second-minibatch-{_name}",
        "After the first update the ratio is no longer 1: an old policy that follows the new one hides it",
        "RATIO-2 DATA-5",
        "ratio-one ratio-value-lost",
        partial(_second_minibatch, _objective),
    )

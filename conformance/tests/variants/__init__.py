"""Correct implementations written in other ways than the core: the suite must find nothing wrong with any of them."""

from . import arithmetic, formulas, rearranged, statistics_

BY_HAND = (*formulas.VARIANTS, *arithmetic.VARIANTS)
VARIANTS = (*rearranged.VARIANTS, *BY_HAND, *statistics_.VARIANTS)

"""What a real run computed, held against what it says it computes: `gspo audit`.

`shards.py` reads the files of a trace, trusting nothing; `trace.py` is the trace as its optimiser steps.
"""

from .trace import Part, Step, Tokens, Trace, read_trace

__all__ = ["Part", "Step", "Tokens", "Trace", "read_trace"]

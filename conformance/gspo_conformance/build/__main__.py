"""`python -m gspo_conformance.build [--check]`: the same as `gspo vectors regen [--check]`."""

from __future__ import annotations

import argparse
import sys

from ..commands import vectors

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m gspo_conformance.build", description=__doc__)
    vectors.add_regen_arguments(parser)
    sys.exit(vectors.regen(parser.parse_args()))

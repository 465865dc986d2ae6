"""The examples are scripts: their tests import them as scripts import each other."""

import sys
from pathlib import Path

for folder in ("", "gsm8k"):
    sys.path.insert(0, str(Path(__file__).parent / folder))

"""What an implementation computes instead: its answers held against those of every known wrong implementation.

run = check(target)
found = diagnose(run)
print(found.sentence)
"""

from .verdict import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]

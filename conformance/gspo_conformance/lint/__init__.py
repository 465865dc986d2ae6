"""What a trainer's configuration really optimises, and where that leaves the paper: `gspo lint`.

`configuration.py` reads files without executing them, a trainer's dialect turns settings into an
objective, `rules.py` holds the objective against the paper, `report.py` writes what was found.
"""

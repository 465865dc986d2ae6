"""Where vectors come from: recipes state a case, the oracle states the truth, one command writes the files.

`python -m gspo_conformance.build` writes every vector; with `--check` it recomputes them all and fails
where a committed file differs in a byte. One module per area, each with a list `RECIPES`.
"""

"""The mutants themselves, one file per stage of the algorithm."""

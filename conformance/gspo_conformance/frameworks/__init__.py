"""How a loss function of each framework is called: `run(fn, gradient, arrays) -> outputs`; one file a framework."""

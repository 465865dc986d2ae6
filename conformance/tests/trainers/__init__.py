"""One module per trainer: its dialect both ways, its documented configurations, its real loss where the environment is set up."""

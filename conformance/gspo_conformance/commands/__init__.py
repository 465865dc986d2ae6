"""The commands of `gspo`: each file has `add_arguments(parser)` and `run(arguments) -> exit code`."""

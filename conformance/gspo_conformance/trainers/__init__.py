"""One room per trainer: `trainers/<name>/` holds its adapter, its dialect, its pinned requirements and its known failures.

Adding a trainer is adding a folder:

    trainer.toml     what it is, its versions, how each installs, where its source lives
    adapter.py       `claims()` and `default()`: targets that call the trainer's real functions
    dialect.py       `DIALECT`: its configuration keys to an objective and back, with its own defaults
    known/*.txt      failures that are expected, by version and variant, with reasons and links
    facts.md         what the documentation says of it
"""

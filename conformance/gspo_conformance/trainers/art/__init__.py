"""ART (OpenPipe): `art.loss.loss_fn` on rows that `art.preprocessing` packs."""

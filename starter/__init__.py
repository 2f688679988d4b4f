"""The starters' weights, vocabularies, recipes and cards: data of `checkpoints.starters`, and how they were made."""

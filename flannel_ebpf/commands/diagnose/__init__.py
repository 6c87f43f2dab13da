"""Commands that say what is there and what is wrong; most of them without a daemon."""

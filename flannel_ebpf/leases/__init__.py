"""Who has which subnet."""

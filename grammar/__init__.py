"""The grammar of `.nl`: data only."""

"""Deciding: how often to save, what it will cost, where to run and when to leave the spot market. Pure."""

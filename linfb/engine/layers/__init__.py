"""Layers: a few pure functions each, knowing nothing of learning rules."""

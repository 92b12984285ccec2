"""Compiled inner loops. `reference` holds plain NumPy twins of the same names and signatures: the oracles."""

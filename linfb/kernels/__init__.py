"""Compiled inner loops; modules `reference_...` hold plain NumPy twins of the same names and signatures, the oracles."""

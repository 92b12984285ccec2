"""Compiled inner loops; modules `reference_...` hold plain NumPy twins with the same names and signatures: oracles."""

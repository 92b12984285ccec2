"""Learning with low-dimensional error feedback: theory, simulation and scaling."""

__version__ = "0.1.0"

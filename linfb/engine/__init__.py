"""A minimal array engine for nonlinear networks: layers as pure functions, any learning rule on each of them."""

"""The flows of the theory, typed out plainly and integrated with SciPy: the oracle of the closed forms."""

import numpy as np
from scipy.integrate import solve_ivp


def integrate(rhs, start, times, *, rtol=1e-12):
    """Integrate d(arrays)/dt = rhs(*arrays), stopping at every time: SciPy's dense output is less accurate.

    Returns one array with a leading time axis per array of `start`.
    """
    shapes = [np.shape(array) for array in start]
    edges = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])

    def split(flat):
        return [flat[a:b].reshape(shape) for a, b, shape in zip(edges, edges[1:], shapes, strict=False)]

    def flat_rhs(_, flat):
        return np.concatenate([np.ravel(part) for part in rhs(*split(flat))])

    state, now, states = np.concatenate([np.ravel(array) for array in start]).astype(float), 0.0, []
    for time in times:
        if time > now:
            solution = solve_ivp(flat_rhs, (now, time), state, method="DOP853", rtol=rtol, atol=1e-3 * rtol)
            assert solution.success
            state, now = solution.y[:, -1], time
        states.append(state)
    return [np.stack(parts) for parts in zip(*(split(state) for state in states), strict=True)]


def low_rank_flow(A, W1, W2, Q, P, times, *, decay=0.0, **options):
    """Integrate the flow (1): W1, W2 and Q under a fixed reader P. Returns them with a leading time axis."""

    def rhs(W1, W2, Q):
        E = A - W2 @ W1
        return Q.T @ P @ E - decay * W1, E @ W1.T - decay * W2, (W1 @ E.T @ P.T).T - decay * Q

    return integrate(rhs, (W1, W2, Q), times, **options)


def fixed_feedback_flow(A, W1, W2, B, times, *, decay=0.0, **options):
    """Integrate feedback alignment: B, shaped like W2, stays."""

    def rhs(W1, W2):
        E = A - W2 @ W1
        return B.T @ E - decay * W1, E @ W1.T - decay * W2

    return integrate(rhs, (W1, W2), times, **options)


def errors_flow(A, rate, mirror, *, decay=0.0, noise=None, gamma=5.0):
    """Return the right-hand side of the flow with an error-driven Oja reader (plain, any dtype)."""
    noise = np.zeros(len(A)) if noise is None else np.asarray(noise)

    def rhs(W1, W2, P, Q):
        E = A - W2 @ W1
        C = E @ E.T + np.diag(noise)
        Q = P @ W2 if mirror == "perfect" else Q
        moves = {
            "perfect": 0 * Q, "kolen_pollack": P @ E @ W1.T - decay * Q, "weight_mirror": gamma * (P @ W2 - Q),
        }  # fmt: skip
        turn = rate * (P @ C - P @ C @ P.T @ P)
        return Q.T @ P @ E - decay * W1, E @ W1.T - decay * W2, turn, moves[mirror]

    return rhs


def assert_close(actual, expected, tolerance):
    """Largest deviation at most `tolerance`; NaN fails."""
    deviation = np.max(np.abs(np.asarray(actual) - np.asarray(expected)))
    assert deviation <= tolerance, f"deviation {deviation:.3g} > {tolerance:.3g}"

"""How much KV cache requests in flight will come to hold at most. Pure, closed form, O(1).

An answer takes a token of cache a step and gives everything back when it ends, so the sum over all in flight is what
each holds and has still to write, only if all of them end at once. They do not: lengths differ, and how much is what
the estimate's distribution says. This is the "future memory" of the Past-Future scheduler (Gong et al., ASPLOS 2025,
arXiv:2507.10150) with what is left of an answer drawn from a distribution instead of simulated one by one.

With n requests that hold c tokens each and have r left in the mean, spread evenly over r*(1 - w) .. r*(1 + w), there
are after tau more tokens of each stream

    occupied(tau) = n * S(tau) * (c + tau)        S = 1 up to r*(1 - w), then falling straight to 0 at r*(1 + w)

whose greatest value is n*(r*(1 + w) + c)^2 / (8*r*w), reached where tau = (r*(1 + w) - c)/2, if that is later than
r*(1 - w), else n*(c + r*(1 - w)). w = min(1, sqrt(3)*sigma/r) has the standard deviation sigma of the lengths; w = 0,
all alike, gives the full sum. On top of the mean come `MARGIN_SIGMAS` standard deviations of the sum of independent
requests, each of which is there or not: at most half of what it may hold. A few long answers are so reserved in full,
many are not; never is more reserved than in full.
"""

from __future__ import annotations

from math import sqrt

MARGIN_SIGMAS = 2.0


def peak_tokens(n: float, held_tokens: float, reserved_tokens: float, variance: float, squares: float) -> float:
    """Tokens of KV that will be needed at most, from `held_tokens` to `reserved_tokens`.

    `reserved_tokens` is the sum over the `n` requests of what each holds and is expected to write; `variance` sums the
    variances of their lengths, `squares` the squares of what each may hold. Never raises for n > 0.
    """
    remaining = reserved_tokens - held_tokens
    if remaining <= 0.0 or variance <= 0.0:
        return reserved_tokens
    mean = remaining / n
    spread = min(1.0, sqrt(3.0 * variance / n) / mean)
    held, none_ends, all_end = held_tokens / n, mean * (1.0 - spread), mean * (1.0 + spread)
    if all_end - held <= 2.0 * none_ends:
        peak = n * (held + none_ends)
    else:
        peak = n * (all_end + held) ** 2 / (8.0 * mean * spread)
    return min(reserved_tokens, peak + 0.5 * MARGIN_SIGMAS * sqrt(squares))

"""RES multistep, by the integrals phi1 and phi2 of the exponential integrator."""

from __future__ import annotations

import math

from tests.sampling.formulas import Array, model


def res_multistep(levels: list[float], x: Array) -> Array:
    before = x
    for step, sigma in enumerate(levels[:-1]):
        following = levels[step + 1]
        velocity = model(x, sigma)
        clean = x + sigma * velocity
        if step == 0 or following == 0:
            x = x + (sigma - following) * velocity
        else:
            h = -math.log(following) + math.log(sigma)
            c2 = (-math.log(levels[step - 1]) + math.log(sigma)) / h
            phi1 = (math.exp(-h) - 1) / -h
            phi2 = (phi1 - 1) / -h
            b1, b2 = phi1 - phi2 / c2, phi2 / c2
            x = math.exp(-h) * x + h * (b1 * clean + b2 * before)
        before = clean
    return x

"""UniPC, the class of diffusers in float64: predictor and corrector of order 2 with B(h) = e^h - 1."""

from __future__ import annotations

import math

import numpy as np

from tests.sampling.formulas import Array, model


def unipc(levels: list[float], x: Array) -> Array:
    levels = [min(levels[0], 1 - 1e-6), *levels[1:]]
    snr = [math.log(1 - level) - math.log(level) if level else math.inf for level in levels]
    estimates: list[Array] = []
    begun, order = x, 0
    for step, sigma in enumerate(levels[:-1]):
        clean = x + sigma * model(x, sigma)
        if step > 0:
            hh = snr[step - 1] - snr[step]
            grown = math.expm1(hh)
            x = sigma / levels[step - 1] * begun - (1 - sigma) * grown * estimates[-1]
            if order == 1:
                x = x - (1 - sigma) * grown * (clean - estimates[-1]) / 2
            else:
                r = (snr[step - 2] - snr[step - 1]) / -hh
                phi = grown / hh - 1
                matrix = np.array([[1, 1], [r, 1]])
                rho = np.linalg.solve(matrix, np.array([phi, 2 * (phi / hh - 1 / 2)]) / grown)
                difference = (estimates[-2] - estimates[-1]) / r
                x = x - (1 - sigma) * grown * (rho[0] * difference + rho[1] * (clean - estimates[-1]))
        begun, following = x, levels[step + 1]
        order = min(2, step + 1, len(levels) - 1 - step)
        hh = snr[step] - snr[step + 1]
        x = following / sigma * begun - (1 - following) * math.expm1(hh) * clean
        if order == 2:
            r = (snr[step - 1] - snr[step]) / -hh
            x = x - (1 - following) * math.expm1(hh) * (estimates[-1] - clean) / r / 2
        estimates.append(clean)
    return x

"""Every optimizer's update written out in NumPy's float64, from its paper: what torch, timm and schedulefree have to equal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
# weight, gradient, state (a dict of its own for each weight), step from 1, learning rate, decay; returns the new weight.
Update = Callable[[Array, Array, dict[str, Any], int, float, float], Array]


def sgd(momentum: float, nesterov: bool = False, dampening: float = 0.0) -> Update:
    def update(w: Array, g: Array, s: dict[str, Any], t: int, lr: float, decay: float) -> Array:
        g = g + decay * w
        s["m"] = g if t == 1 else momentum * s["m"] + (1 - dampening) * g
        return w - lr * (g + momentum * s["m"] if nesterov else s["m"])

    return update


def rmsprop(alpha: float, eps: float, momentum: float, centered: bool) -> Update:
    def update(w: Array, g: Array, s: dict[str, Any], t: int, lr: float, decay: float) -> Array:
        g = g + decay * w
        s["v"] = alpha * s.get("v", 0) + (1 - alpha) * g**2
        s["a"] = alpha * s.get("a", 0) + (1 - alpha) * g
        s["b"] = momentum * s.get("b", 0) + g / (np.sqrt(s["v"] - (s["a"] ** 2 if centered else 0)) + eps)
        return w - lr * s["b"]

    return update


def adagrad(lr_decay: float, start: float, eps: float) -> Update:
    def update(w: Array, g: Array, s: dict[str, Any], t: int, lr: float, decay: float) -> Array:
        g = g + decay * w
        s["s"] = s.get("s", start) + g**2
        return w - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(s["s"]) + eps)

    return update


def _moments(s: dict[str, Any], g: Array, b1: float, b2: float, t: int) -> tuple[Array, Array]:
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
    return s["m"] / (1 - b1**t), s["v"] / (1 - b2**t)


def adam(b1: float, b2: float, eps: float, decoupled: bool, amsgrad: bool = False) -> Update:
    def update(w: Array, g: Array, s: dict[str, Any], t: int, lr: float, decay: float) -> Array:
        if not decoupled:
            g = g + decay * w
        m, v = _moments(s, g, b1, b2, t)
        if amsgrad:
            s["largest"] = np.maximum(s.get("largest", 0), s["v"])
            v = s["largest"] / (1 - b2**t)
        return w - (lr * decay * w if decoupled else 0) - lr * m / (np.sqrt(v) + eps)

    return update


def nadam(b1: float, b2: float, eps: float, momentum_decay: float, decoupled: bool) -> Update:
    def mu(t: int) -> float:
        return b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    def update(w: Array, g: Array, s: dict[str, Any], t: int, lr: float, decay: float) -> Array:
        before = w
        if not decoupled:
            g = g + decay * w
        _, v = _moments(s, g, b1, b2, t)
        product = math.prod(mu(i) for i in range(1, t + 1))
        ahead = (1 - mu(t)) * g / (1 - product) + mu(t + 1) * s["m"] / (1 - product * mu(t + 1))
        return w - (lr * decay * before if decoupled else 0) - lr * ahead / (np.sqrt(v) + eps)

    return update


def radam(b1: float, b2: float, eps: float, decoupled: bool) -> Update:
    def update(w: Array, g: Array, s: dict[str, Any], t: int, lr: float, decay: float) -> Array:
        shrunk = w - lr * decay * w if decoupled else w
        m, _ = _moments(s, g if decoupled else g + decay * w, b1, b2, t)
        top = 2 / (1 - b2) - 1
        rho = top - 2 * t * b2**t / (1 - b2**t)
        if rho <= 5:
            return shrunk - lr * m
        r = math.sqrt((rho - 4) * (rho - 2) * top / ((top - 4) * (top - 2) * rho))
        return shrunk - lr * m * r * math.sqrt(1 - b2**t) / (np.sqrt(s["v"]) + eps)

    return update


def lamb(b1: float, b2: float, eps: float) -> Update:
    def update(w: Array, g: Array, s: dict[str, Any], t: int, lr: float, decay: float) -> Array:
        m, v = _moments(s, g, b1, b2, t)
        d = m / (np.sqrt(v) + eps) + decay * w
        ratio = np.linalg.norm(w) / np.linalg.norm(d) if decay and np.linalg.norm(w) and np.linalg.norm(d) else 1.0
        return w - lr * ratio * d

    return update


def lion(b1: float, b2: float) -> Update:
    def update(w: Array, g: Array, s: dict[str, Any], t: int, lr: float, decay: float) -> Array:
        m = s.get("m", np.zeros_like(g))
        s["m"] = b2 * m + (1 - b2) * g
        return w - lr * decay * w - lr * np.sign(b1 * m + (1 - b1) * g)

    return update


def muon(momentum: float, nesterov: bool, steps: int, match_rms: bool) -> Update:
    def update(w: Array, g: Array, s: dict[str, Any], t: int, lr: float, decay: float) -> Array:
        s["m"] = momentum * s.get("m", 0) + (1 - momentum) * g
        u = ((1 - momentum) * g + momentum * s["m"] if nesterov else s["m"]).reshape(len(g), -1)
        rows, columns = u.shape
        left, sizes, right = np.linalg.svd(u, full_matrices=False)
        sizes = sizes / np.linalg.norm(sizes)
        for _ in range(steps):  # the quintic of the iteration acts on each singular value by itself
            sizes = 3.4445 * sizes - 4.7750 * sizes**3 + 2.0315 * sizes**5
        scale = 0.2 * math.sqrt(max(rows, columns)) if match_rms else math.sqrt(max(1, rows / columns))
        return w - lr * decay * w - lr * scale * ((left * sizes) @ right).reshape(g.shape)

    return update


def schedule_free(beta: float, b2: float | None, eps: float, r: float, power: float) -> Update:
    """Returns y, where the next gradient is taken; the average is state["x"]. With b2 the steps are AdamW's, else those of SGD."""

    def update(w: Array, g: Array, s: dict[str, Any], t: int, lr: float, decay: float) -> Array:
        s.setdefault("z", w)
        s.setdefault("x", w)
        if b2 is not None:
            s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
            g = g / (np.sqrt(s["v"] / (1 - b2**t)) + eps)
        s["largest"] = max(lr, s.get("largest", 0.0))
        weight = t**r * s["largest"] ** power
        s["sum"] = s.get("sum", 0.0) + weight
        c = weight / s["sum"]
        s["z"] = s["z"] - lr * (g + decay * w)
        s["x"] = (1 - c) * s["x"] + c * s["z"]
        return (1 - beta) * s["z"] + beta * s["x"]

    return update

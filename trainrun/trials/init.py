"""`trainrun show RECIPE --init`: what the first weights do to one batch, layer by layer: signal, gradient, dead units, units that are alike."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainrun.recipe.registry import Registry, registry
from trainrun.recipe.schema import Recipe
from trainrun.report.console import clean
from trainrun.report.plots import blank, save
from trainrun.world import World

_BAR = 10  # columns of a bar
_FAR = 1e3  # how far apart the largest and the smallest layer's signal may be
_HIGH = 3.0  # how many times the loss of a guess the first loss may be


@dataclass
class Layer:
    """One layer on one batch: standard deviations of its output and of the gradient there, and how many of its units do not take part.

    dead: units whose activation behind the layer is never above zero; saturated: never off the flat ends of a sigmoid or tanh;
    None where no such activation follows. unreached: units whose weights get no gradient at all. alike: units that have the weights
    and the gradient of another one, so that training cannot part them.
    """

    name: str
    kind: str
    units: int
    signal: float = math.nan
    gradient: float = 0.0
    dead: int | None = None
    saturated: int | None = None
    unreached: int = 0
    alike: int = 0


@dataclass(frozen=True)
class Init:
    """The layers in the order in which the network runs them, the first loss in nats, and what is wrong."""

    initializer: str
    classes: int
    pictures: int
    loss: float
    layers: Sequence[Layer]
    silent: bool = False  # branches are meant to begin at zero
    verdict: str = field(init=False, default="")
    fault: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        fault, verdict = _judge(self)
        object.__setattr__(self, "fault", fault)
        object.__setattr__(self, "verdict", verdict)

    def document(self) -> dict[str, Any]:
        """The findings as JSON values; what is not finite is null. `fault` is null, or one word for what is wrong."""
        rows = [{name: _finite(value) for name, value in asdict(layer).items()} for layer in self.layers]
        return {
            "initializer": self.initializer, "pictures": self.pictures, "loss": _finite(self.loss), "loss_of_a_guess": math.log(self.classes),
            "layers": rows, "fault": self.fault, "verdict": self.verdict,
        }  # fmt: skip

    def lines(self, width: int) -> str:
        """A table with bars (logarithmic, each column by itself), and last what is wrong and what to do."""
        name = max(min(max([len(layer.name) for layer in self.layers], default=5), width - 65), 5)
        signals, gradients = ([getattr(layer, of) for layer in self.layers] for of in ("signal", "gradient"))
        heads = f"{'std of output':>19}  {'std of gradient':>19}"
        rows = [f"{'':{name}}  {'':40}  units (share of all)", f"{'layer':{name}}  {heads} {'dead':>5} {'no grad':>7} {'alike':>5}"]
        for layer in self.layers:
            idle = [layer.dead, layer.saturated]
            worst = None if idle == [None, None] else max(n or 0 for n in idle)
            shares = f"{_share(worst, layer.units):>5} {_share(layer.unreached, layer.units):>7} {_share(layer.alike, layer.units):>5}"
            bars = "  ".join(f"{_number(value):>8} {_bar(value, column):{_BAR}}" for value, column in ((layer.signal, signals), (layer.gradient, gradients)))
            rows.append(f"{_short(clean(layer.name, keep=''), name):{name}}  {bars} {shares}")
        rows += [self._told(), *textwrap.wrap(self.verdict, width, break_on_hyphens=False)]
        return "\n".join(row[:width].rstrip() for row in rows)

    def png(self, file: Path) -> None:
        """Draw the layers from top to bottom: both standard deviations on logarithmic axes, and the shares of units; raises UserError as `save` does."""
        figure = blank(11, 1.8 + 0.3 * len(self.layers))
        figure.suptitle("\n".join((self._told(), *textwrap.wrap(self.verdict, 130))), fontsize="medium")
        names = [_short(clean(layer.name, keep=""), 40) for layer in self.layers]
        panels = figure.subplots(1, 3, sharey=True, squeeze=False)[0]
        for axes, of, title in zip(panels, ("signal", "gradient"), ("std of output", "std of gradient"), strict=False):
            values = [getattr(layer, of) for layer in self.layers]
            known = [value if math.isfinite(value) and value > 0 else math.nan for value in values]
            axes.set(title=title, xscale="log")
            axes.plot(known, range(len(values)), "o-")
            axes.margins(x=0.2)
            for place, value in enumerate(values):
                axes.annotate(_number(value), (0.99, place), xycoords=axes.get_yaxis_transform(), ha="right", va="center", fontsize="small")
        shares = {"dead": "dead", "saturated": "saturated", "no gradient": "unreached", "alike": "alike"}
        for n, (label, of) in enumerate(shares.items()):
            parts = [(getattr(layer, of) or 0) / layer.units for layer in self.layers]
            panels[2].barh([place + (n - 1.5) * 0.2 for place in range(len(parts))], parts, 0.2, label=label)
        panels[2].set(xlabel="share of units", xlim=(0, 1))
        panels[2].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, fontsize="small", frameon=False)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        for axes in panels:
            axes.grid(alpha=0.3)
        save(figure, file)

    def _told(self) -> str:
        return f"{self.initializer}, {self.pictures} pictures: first loss {_number(self.loss)}, that of a guess {math.log(self.classes):.4g}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "nan" if math.isnan(value) else "inf"


def _share(count: int | None, units: int) -> str:
    return "" if count is None else "-" if not count else f"{max(count / units, 0.01):.0%}"


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else f"..{name[2 - width :]}"


def _bar(value: float, column: Sequence[float]) -> str:
    """A bar that is full at the column's largest value and a tenth as long for each decade below it by its span, of at least four."""
    known = [v for v in column if math.isfinite(v) and v > 0]
    if not known or value == 0 or math.isnan(value):
        return ""
    if math.isinf(value):
        return "#" * _BAR
    top, span = math.log10(max(known)), max(math.log10(max(known) / min(known)), 4.0)
    return "#" * max(round(_BAR * (1 - (top - math.log10(value)) / (span * 1.1))), 1)


def _named(layers: Sequence[Layer]) -> str:
    first = ", ".join(layer.name for layer in layers[:2])
    return f"layer{'s' if len(layers) > 1 else ''} {first}" + (f" and {len(layers) - 2} more" if len(layers) > 2 else "")


def _judge(seen: Init) -> tuple[str | None, str]:
    """A word for what is wrong, or None, and the sentence for people; what cannot be trained at all comes first."""
    layers = seen.layers
    draw = "draw weights, as with initializer=kaiming_normal"
    if broken := [layer for layer in layers if not (math.isfinite(layer.signal) and math.isfinite(layer.gradient))]:
        return "non_finite", f"Wrong: numbers are no longer finite from {_named(broken[:1])} on. Draw smaller weights, as with initializer=kaiming_normal."
    if not math.isfinite(seen.loss):
        return "non_finite", "Wrong: the loss is not finite. Draw smaller weights, as with initializer=kaiming_normal."
    if dead := [layer for layer in layers if layer.dead == layer.units]:
        return "dead", f"Wrong: the network is dead: no unit of {_named(dead)} is ever active, so nothing below it learns; {draw}."
    hidden = layers[:-1]
    if alike := [layer for layer in hidden if layer.alike == layer.units > 1]:
        return "alike", f"Wrong: all units of {_named(alike)} are alike and get the same gradient, so they stay one unit for good; {draw}."
    if not seen.silent and (cut := [layer for layer in layers if layer.unreached == layer.units]):
        return "no_gradient", f"Wrong: no gradient reaches {_named(cut)}: what comes after is zero; {draw}."
    if full := [layer for layer in layers if (layer.saturated or 0) > layer.units / 2]:
        return "saturated", f"Wrong: most units of {_named(full)} are saturated, where their gradient vanishes. Draw smaller weights, as with xavier_normal."
    for what, of in (("signal", "signal"), ("gradient", "gradient")):
        known = [layer for layer in layers if getattr(layer, of) > 0]
        low, high = (pick(known, key=lambda layer: getattr(layer, of), default=None) for pick in (min, max))
        if low and high and getattr(high, of) > _FAR * getattr(low, of):
            ratio = f"{getattr(high, of) / getattr(low, of):.2g}"
            end = "Keep it with initializer=kaiming_normal or lsuv, or use a model with norms."
            return f"{what}_drifts", f"Wrong: the {what} is {ratio} times larger at {_named([high])} than at {_named([low])}. {end}"
    if seen.loss > _HIGH * math.log(max(seen.classes, 2)):
        times = f"{seen.loss / math.log(max(seen.classes, 2)):.2g}"
        return "loss", f"Wrong: the first loss is {times} times that of a guess, so the logits are too large: draw smaller weights for {_named(layers[-1:])}, as with kaiming_normal."
    if few := [layer for layer in layers if max(layer.dead or 0, layer.alike if layer is not layers[-1] else 0) > layer.units / 2]:
        return "few_units", f"Doubtful: more than half the units of {_named(few)} are dead or alike; {draw}."
    asleep = sum(layer.unreached == layer.units for layer in layers)
    more = f" {asleep} layers of silent branches get a gradient from the second step on." if asleep else ""
    return None, f"Nothing is wrong: signal and gradient keep their size, and units are alive and differ.{more}"


def look(recipe: Recipe, world: World, parts: Registry = registry) -> Init:
    """One forward and backward pass of the run's own first (micro-)batch at step 0; raises UserError where the run cannot be made."""
    from contextlib import closing

    from trainrun.draw import step_seed
    from trainrun.engine.build import build, open_data, settle
    from trainrun.engine.signals import Signals
    from trainrun.engine.tasks import task_of
    from trainrun.errors import UserError

    if task_of(recipe, parts) == "detection":
        raise UserError(f"--init measures classification networks against a guess among the classes, and data {recipe.data.name} has boxes")
    data = open_data(recipe.data, parts)
    settled, _ = settle(recipe.model_copy(update={"compile": "off"}), world, data.train, parts)  # compiled layers cannot be watched
    with closing(build(settled, world, data, Signals(), parts)) as run:
        batch = next(run.batches(0)).split(settled.micro_batch)[0]
        run.model.train()
        run.seed_model_draws(step_seed(settled.seed, 0, world.rank))
        watch = _Watch(run.model)
        images, targets = run.inputs(batch, training=True)
        with watch, world.autocast(settled.precision):
            _, losses, _ = run.task.learn(run.forward, images, targets, batch)
        loss = losses.sum() / len(batch)
        scale = run.scaler.get_scale()
        (loss * scale).backward()
        layers = [_counted(watch, layer, module, scale) for module, layer in watch.layers.items()]
    return Init(recipe.initializer.name, len(data.classes), len(batch), float(loss.detach()), layers, recipe.initializer.options["zero_init_residual"])


def _counted(watch: _Watch, layer: Layer, module: Any, scale: float) -> Layer:
    """The layer with its gradient and with the units that get none or are alike."""
    import torch

    if layer.name in watch.gradients:
        layer.gradient = watch.gradients[layer.name] / scale
    parameters = [p for p in (module.weight, module.bias) if p is not None]
    rows = [_rows(p.detach(), module) for p in parameters]
    slopes = [_rows(torch.zeros_like(p) if p.grad is None else p.grad / scale, module) for p in parameters]
    layer.unreached = int((slopes[0] == 0).all(1).sum())
    layer.alike = _alike(torch.cat([row / (row.abs().max() or 1) for row in (*rows, *slopes)], 1))
    return layer


def _rows(parameter: Any, module: Any) -> Any:
    """A parameter as one row a unit, float64; a transposed convolution has its units second."""
    from torch.nn.modules.conv import _ConvTransposeNd

    if isinstance(module, _ConvTransposeNd) and parameter.ndim > 1:
        inner = parameter.unflatten(0, (module.groups, -1)).transpose(1, 2)
        return inner.flatten(0, 1).flatten(1).double()
    return parameter.flatten(1).double() if parameter.ndim > 1 else parameter[:, None].double()


def _alike(rows: Any) -> int:
    """How many rows equal another one but for rounding: equal rows are neighbours in the order of their products with a random vector."""
    import torch

    direction = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(rows.device)
    ordered = rows[(rows @ direction).argsort()]
    same = (ordered[1:] - ordered[:-1]).abs().amax(1) < 1e-5
    none = same.new_zeros(1)
    return int((torch.cat((none, same)) | torch.cat((same, none))).sum())


class _Watch:
    """Sees the output of every convolution and linear layer, its gradient, and the activation that follows; active as a context."""

    def __init__(self, model: Any) -> None:
        from torch import nn
        from torch.nn.modules.conv import _ConvNd

        self.names = {module: name for name, module in model.named_modules() if isinstance(module, (_ConvNd, nn.Linear))}
        self.layers: dict[Any, Layer] = {}
        self.gradients: dict[str, float] = {}
        self._last: Layer | None = None

    def __enter__(self) -> None:
        self._hooks = [module.register_forward_hook(self._output) for module in self.names]
        self._functions = _functions(self)
        self._functions.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self._functions.__exit__(*raised)
        for hook in self._hooks:
            hook.remove()

    def _output(self, module: Any, _inputs: Any, output: Any) -> None:
        if module in self.layers:  # one that runs again
            return
        name = self.names[module]
        units = getattr(module, "out_channels", None) or module.out_features
        self._last = self.layers[module] = Layer(name, type(module).__name__, units, signal=float(output.detach().double().std(correction=0)))
        if output.requires_grad:
            output.register_hook(lambda gradient: self.gradients.__setitem__(name, float(gradient.double().std(correction=0))))

    def activation(self, kind: str, output: Any) -> None:
        """Note an activation function's output, which belongs to the layer that ran last, once."""
        layer = self._last
        axis = None if layer is None else next((n for n in (1, output.ndim - 1) if n < output.ndim and output.shape[n] == layer.units), None)
        if layer is None or axis is None or layer.dead is not None or layer.saturated is not None:
            return
        by_unit = output.detach().transpose(0, axis).flatten(1)
        if kind in ("sigmoid", "tanh"):
            middle = by_unit * 2 - 1 if kind == "sigmoid" else by_unit
            layer.saturated = int((middle.abs() > 0.98).all(1).sum())
        else:
            layer.dead = int((by_unit <= 0).all(1).sum())


def _functions(watch: _Watch) -> Any:
    """A mode of torch that tells `watch` of activation functions, whether a network calls them as modules or as functions."""
    import torch
    from torch.overrides import TorchFunctionMode

    names = ("relu", "relu_", "relu6", "gelu", "silu", "hardswish", "sigmoid", "sigmoid_", "tanh", "tanh_")
    homes = (torch, torch.nn.functional, torch.Tensor)
    known = {getattr(home, name): name.rstrip("_") for name in names for home in homes if hasattr(home, name)}

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = func(*args, **(kwargs or {}))
            if func in known and torch.is_tensor(output):
                watch.activation(known[func], output)
            return output

    return Mode()

"""Which parameters of a network an initializer fills, the rules over their names, and the branches that begin silent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from trainrun.errors import UserError
from trainrun.parts.initializers.fills import default, zeros
from trainrun.recipe.globs import matching
from trainrun.recipe.registry import PartNode, Registry, registry

if TYPE_CHECKING:
    from torch import Tensor, nn

Fill = Callable[["Tensor"], None]
_WHAT = "weight or bias of a convolution, linear or attention layer"
# The layer that closes the residual branch of torchvision's blocks, which cannot say it themselves.
_CLOSING = {"BasicBlock": "bn2", "Bottleneck": "bn3"}


def initialize(model: nn.Module, node: PartNode, parts: Registry = registry) -> None:
    """Fill the weights of every convolution, linear and attention layer, and their biases; norms are touched by zero_init_residual only.

    An initializer that looks at data draws its first weights here; `adapt` does the rest. Raises UserError for a rule without effect
    and for zero_init_residual where no residual block is known.
    """
    fills = _fills(model, node, parts)
    for name, tensors in parameters(model).items():
        if fill := fills[name]:
            for tensor in tensors:
                fill(tensor)
    if node.options["zero_init_residual"]:
        _silence(node, model)


def adapt(model: nn.Module, node: PartNode, pictures: Iterable[Tensor], parts: Registry = registry) -> None:
    """Let an initializer that looks at data go on, after `initialize`; it gets the names of the weights that are its to change."""
    taken = {name for name, _ in _ruled(model, node, "weights")}
    closing = {id(layer.weight) for layer in closing_layers(model)} if node.options["zero_init_residual"] else set()
    named = dict(model.named_parameters(remove_duplicate=False))  # a weight that layers share has a name in each of them
    free = [name for name in parameters(model) if not is_bias(name) and name not in taken and id(named[name]) not in closing]
    parts.build(node)(model, pictures, frozenset(free))


def is_bias(name: str) -> bool:
    """Whether a parameter that `parameters` names is a bias."""
    return name.rpartition(".")[2] in ("bias", "in_proj_bias")


def _fills(model: nn.Module, node: PartNode, parts: Registry) -> dict[str, Fill | None]:
    """What fills each parameter, by name; None where it stays as the network drew it."""
    part = parts.get("initializer", node.name)
    facts = part.facts if part else {}
    weights = facts.get("first") if facts.get("data") else parts.build(node)
    biases = parts.build(node.biases) if node.biases else None if facts.get("keeps") else zeros
    fills: dict[str, Fill | None] = {name: biases if is_bias(name) else weights for name in parameters(model)}
    rules = [*_ruled(model, node, "weights"), *_ruled(model, node, "biases")]
    last = {name: n for name, n in rules}
    for n, rule in enumerate(node.rules):
        if n not in last.values():
            reached = any(of == n for _, of in rules)
            why = "later rules overrule all that {!r} sets" if reached else "{!r} matches nothing of the kind that it sets, weights or biases"
            raise UserError(f"initializer.rules.{n}: {why.format(rule.match)}, so it has no effect")
    covered = _covered(model)
    for name, n in last.items():
        chosen = node.rules[n].biases if is_bias(name) else node.rules[n].weights
        if name in covered and chosen.name != "default":
            new = [other for other in fills if other not in covered]
            told = ", ".join(new[:4]) + (f" and {len(new) - 4} more" if len(new) > 4 else "") or "nothing here"
            raise UserError(f"initializer.rules.{n}: {node.rules[n].match!r} would overwrite {name}, which the model's weights bring along; new is {told}")
        fills[name] = parts.build(chosen)
    return {name: None if fill is None or getattr(fill, "func", fill) is default else fill for name, fill in fills.items()}


def _covered(model: nn.Module) -> frozenset[str]:
    """The parameters that have pretrained values: those that the network or a part of it names in its attribute `covered`."""
    return frozenset(f"{name}.{own}".lstrip(".") for name, module in model.named_modules() for own in getattr(module, "covered", ()))


def _ruled(model: nn.Module, node: PartNode, option: str) -> list[tuple[str, int]]:
    """The parameters that rules draw, each with the number of the rule, in the order of the rules."""
    names = list(parameters(model))
    found = []
    for n, rule in enumerate(node.rules):
        matched = matching(rule.match, names, f"initializer.rules.{n}.match", _WHAT)
        found += [(name, n) for name in matched if getattr(rule, option) is not None and is_bias(name) == (option == "biases")]
    return found


def _silence(node: PartNode, model: nn.Module) -> None:
    import torch

    layers = closing_layers(model)
    if not layers:
        raise UserError(f"initializer.zero_init_residual: {type(model).__name__} has no residual block that says which layer closes its branch; leave it out")
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            if getattr(layer, "bias", None) is not None:
                layer.bias.zero_()


def closing_layers(model: nn.Module) -> list[Any]:
    """Of each residual block the layer at whose zero weight the branch is silent and can still learn.

    It is the norm that ends the branch, or the convolution where a norm does not: behind a norm and a relu a zero would stay for good.
    A block says its name by the attribute `closing`, which is None where the branch must not be silent; torchvision's ResNets are known.
    """
    found: list[Any] = []
    for module in model.modules():
        kind = type(module)
        known = _CLOSING.get(kind.__name__) if kind.__module__ == "torchvision.models.resnet" else None
        if isinstance(name := getattr(module, "closing", known), str):
            found.append(module.get_submodule(name))
    return found


def parameters(model: nn.Module) -> dict[str, list[Tensor]]:
    """The weights and biases of convolutions, linear layers and nn.MultiheadAttention by name: a bias whole, a weight as its kernels."""
    found: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        kernels = dict(_kernels(module))
        biases = ("bias", "in_proj_bias") if kernels else ()
        kernels |= {bias: [value.detach()] for bias in biases if (value := getattr(module, bias, None)) is not None}
        found |= {f"{name}.{parameter}".lstrip("."): tensors for parameter, tensors in kernels.items()}
    return found


def _kernels(module: nn.Module) -> Iterator[tuple[str, list[Tensor]]]:
    """The module's weights as kernels laid out [out, in, *kernel], each connecting all of its inputs with all of its outputs.

    One of a grouped convolution's groups is one kernel, and a transposed convolution's is given transposed, so that fans
    count true connections. torch.nn.init reads them off the whole weight, where groups make fan_out too large and a
    transposed convolution has fan_in and fan_out exchanged.
    """
    from torch import nn
    from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

    if isinstance(module, _ConvNd):
        groups = module.weight.detach().chunk(module.groups)
        yield "weight", [group.transpose(0, 1) if isinstance(module, _ConvTransposeNd) else group for group in groups]
    elif isinstance(module, nn.Linear):
        yield "weight", [module.weight.detach()]
    elif isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            yield "in_proj_weight", list(module.in_proj_weight.detach().chunk(3))
        else:  # keys or values of another width
            yield from ((f"{of}_proj_weight", [getattr(module, f"{of}_proj_weight").detach()]) for of in "qkv")

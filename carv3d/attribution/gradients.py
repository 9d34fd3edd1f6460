"""The gradient of every row's own loss, from one backward pass of the batch.

The gradient of a linear layer's weight is a sum of products of the layer's input and the loss's gradient by the
layer's output. Both are known for every row after one pass (Goodfellow, "Efficient per-example gradient
computations", arXiv
1510.01799; for convolutions Rochette et al., arXiv 1912.06015, by unfolding). Layers before the first chosen one have
no backward pass. `torch.func.vmap` of `grad` gives the same numbers; docs/how-to/attribution.md has
their times.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from carv3d.errors import UserError


class _Seen(threading.local):
    """Name, input and output of the chosen layers in a thread's last forward pass."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Tensor, Tensor]] = []


class RowGradients:
    """Computes per-row gradients of chosen layers from the losses of a batch's rows. Several threads may use it.

    Attributes:
        layers: the chosen `nn.Linear` and `nn.Conv2d` by name, in the network's order.
        sizes: their number of parameters, weight and bias.
    """

    def __init__(self, network: nn.Module, pattern: str) -> None:
        """Choose layers. The network is frozen.

        Args:
            network: rows of a batch must not affect each other (no batch normalisation).
            pattern: a regular expression, searched in the layers' names.

        Raises:
            UserError: not a regular expression, or one that matches no linear or plain convolutional layer.
        """
        try:
            wanted = re.compile(pattern)
        except re.error as error:
            raise UserError(f"layers={pattern!r} is not a regular expression ({error})") from None
        known = {name: module for name, module in network.named_modules() if _is_known(module)}
        self.layers = {name: module for name, module in known.items() if wanted.search(name)}
        if not self.layers:
            some = ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in known))
            raise UserError(
                f"layers={pattern!r} is in no layer's name; there are linear and convolutional ones in {some}"
            )
        self.sizes = {name: sum(p.numel() for p in layer.parameters()) for name, layer in self.layers.items()}
        network.requires_grad_(False)
        self._now = _Seen()
        self._handles: list[RemovableHandle] = [network.register_forward_pre_hook(self._begin)]
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_hook(self._watch(name)))

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def __call__(self, losses: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The gradients of the rows' losses, layer by layer, so that only one layer's gradients are in memory.

        Args:
            losses: (N,), of the network's last forward pass, which had these N rows.

        Yields:
            A layer's name and (N, its size) float32, weight first, then bias; zeros if the loss does not depend on it.

        Raises:
            UserError: a layer did not see N rows.
        """
        rows = len(losses)
        calls, self._now.calls = self._now.calls, []
        # By the outputs: the summed gradients of the weights are not needed.
        outputs = [output for *_, output in calls]
        found = torch.autograd.grad(losses.sum(), outputs, allow_unused=True) if outputs else ()
        seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for (name, a, _), g in zip(calls, found, strict=True):
            if g is not None:
                seen.setdefault(name, []).append((a, g))
        del calls, outputs, found
        for name, layer in self.layers.items():
            total = losses.new_zeros(rows, self.sizes[name], dtype=torch.float32)
            for a, g in seen.pop(name, []):
                if len(a) != rows or len(g) != rows:
                    raise UserError(f"the network's {name} does not work row by row: choose other layers")
                total += _row_gradients(layer, a, g)
            yield name, total

    def _begin(self, *_: object) -> None:
        self._now.calls = []

    def _watch(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def after(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            first = not output.requires_grad  # the graph begins here
            output.requires_grad_()
            self._now.calls.append((name, inputs[0].detach(), output))
            return output.clone() if first else None  # a leaf may not be changed in place

        return after


def _is_known(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


def _row_gradients(layer: nn.Module, a: Tensor, g: Tensor) -> Tensor:
    """(N, weight and bias) from the layer's input a and the loss's gradient g at its output."""
    a, g = a.float(), g.float()
    if isinstance(layer, nn.Conv2d):
        a = F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        g = g.flatten(2)  # (N, out, places), and a is (N, in x kernel, places)
        weight = g @ a.mT
    else:
        a, g = a.reshape(len(a), -1, a.shape[-1]), g.reshape(len(g), -1, g.shape[-1]).mT
        weight = g @ a
    parts = [weight.flatten(1)]
    if layer.bias is not None:
        parts.append(g.sum(2))
    return torch.cat(parts, 1)

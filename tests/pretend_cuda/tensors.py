"""Tensors of the pretended device, and the checks that CUDA makes before an operation."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from tests.pretend_cuda import generators
from tests.pretend_cuda.generators import CUDA, CudaGenerator
from tests.pretend_cuda.recorder import note

aten = torch.ops.aten

_COPIES = {aten._to_copy.default, aten.copy_.default, aten.copy.default}
_INDEXING = {"aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_", "aten._unsafe_index"}
# Operations in which the host needs a number from the device.
_WAITS = {
    "aten._local_scalar_dense": "item",
    "aten.nonzero": "nonzero",
    "aten.masked_select": "masked_select",
    "aten.unique_consecutive": "unique_consecutive",
    "aten._unique2": "unique",
    "aten.unique_dim": "unique",
    "aten.equal": "equal",
    "aten.bincount": "bincount",
}
# Besides those that torch tags as pointwise, these take CPU tensors without dimensions.
_WITH_NUMBERS = {"where", "masked_fill", "fill", "lerp", "addcmul", "addcdiv"}


class CudaTensor(torch.Tensor):
    """A tensor on cuda:0, whose numbers are in `_cpu`."""

    _cpu: torch.Tensor

    @staticmethod
    def __new__(cls, cpu: torch.Tensor) -> CudaTensor:
        made: CudaTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            cpu.size(),
            strides=cpu.stride(),
            storage_offset=cpu.storage_offset(),
            dtype=cpu.dtype,
            layout=cpu.layout,
            device=CUDA,
        )
        made._cpu = cpu
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.tolist:
                return args[0].cpu().tolist()
            if func in (torch.Tensor.untyped_storage, torch.Tensor.data_ptr):
                return func(args[0]._cpu)
            if func in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            if func is torch.Tensor.pin_memory:
                return args[0]
            found = func(*args, **(kwargs or {}))
        if func == torch.Tensor.data.__set__:  # type: ignore[attr-defined]
            args[0]._cpu = args[1]._cpu  # torch replaces its own part of the tensor
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"on cuda:0, {self._cpu!r}"


class Dispatch(TorchDispatchMode):
    """Sees all operations, those that make tensors out of nothing too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation: CUDA's checks, then the CPU's kernel."""
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, CudaTensor)]
    asked, generator = kwargs.get("device"), generators.owner(kwargs.get("generator"))
    to_cuda = asked is not None and torch.device(asked).type == "cuda"
    if not ours and not to_cuda:
        if isinstance(generator, CudaGenerator):
            raise RuntimeError("Expected a 'cpu' device type for generator but found 'cuda'")
        return func(*args, **kwargs)
    name = str(func._schema.name).replace("::", ".")
    _refuse_other_devices(func, name, args, tensors)
    on_cuda = to_cuda if asked is not None else True
    _note(func, name, args, kwargs, on_cuda)
    if on_cuda and any(argument.name == "generator" for argument in func._schema.arguments):
        generator = generators.default if generator is None else generator
        if not isinstance(generator, CudaGenerator):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        kwargs = kwargs | {"generator": generator.of_one_operation()}
    flat, spec = tree_flatten((args, kwargs))
    on_cpu, options = tree_unflatten([x._cpu if isinstance(x, CudaTensor) else x for x in flat], spec)
    if to_cuda:
        options["device"] = torch.device("cpu")
    if options.get("pin_memory"):
        options["pin_memory"] = False
    found = func(*on_cpu, **options)
    return args[0] if func is aten.copy_.default else _outputs(func, args, kwargs, found, on_cuda)


def _outputs(func: Any, args: Any, kwargs: Any, found: Any, on_cuda: bool) -> Any:
    """What the operation returns: the argument that it wrote into, or a new tensor on the device."""
    declared = func._schema.returns
    if not declared:
        return found
    outputs = []
    for output, what in zip(found if len(declared) > 1 else [found], declared, strict=True):
        if what.alias_info is not None and what.alias_info.is_write:
            outputs.append(_written(func, args, kwargs, what.alias_info))
        else:
            outputs.append(tree_map_only(torch.Tensor, CudaTensor, output) if on_cuda else output)
    return tuple(outputs) if len(declared) > 1 else outputs[0]


def _written(func: Any, args: Any, kwargs: Any, alias: Any) -> Any:
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.before_set == alias.before_set:
            value = args[index] if index < len(args) else kwargs[argument.name]
            if isinstance(value, CudaTensor) and value._cpu.shape != value.shape:
                raise NotImplementedError(f"{func} changes a shape in place")
            return value
    raise NotImplementedError(str(func))


def _refuse_other_devices(func: Any, name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    """As torch does for CUDA: devices do not mix, but for numbers, for indices, and for an optimiser's step counts."""
    others = [x for x in tensors if not isinstance(x, CudaTensor)]
    if not others or len(others) == len(tensors) or func in _COPIES:
        return
    if name.startswith(("aten._foreach", "aten._fused")):
        return
    bare = name.removeprefix("aten.").rstrip("_")
    if name in _INDEXING:
        if not isinstance(args[0], CudaTensor):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        others = [x for x in args[2:3] if isinstance(x, torch.Tensor) and not isinstance(x, CudaTensor) and x.dim()]
        if not others:
            return
    elif all(x.dim() == 0 for x in others) and (torch.Tag.pointwise in func.tags or bare in _WITH_NUMBERS):
        return
    shapes = ", ".join(f"{x.device} {tuple(x.shape)}" for x in tensors)
    raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {shapes}")


def _note(func: Any, name: str, args: Any, kwargs: Any, on_cuda: bool) -> None:
    if name in _WAITS:
        note("wait", _WAITS[name])
    elif name == "aten.repeat_interleave" and kwargs.get("output_size") is None:
        note("wait", "repeat_interleave")
    elif name in _INDEXING:
        _note_indices(name, args)
    elif func is aten._to_copy.default and isinstance(args[0], CudaTensor) != on_cuda:
        _note_copy(on_cuda, args[0], bool(kwargs.get("non_blocking")))
    elif func is aten.copy_.default and isinstance(args[0], CudaTensor) != isinstance(args[1], CudaTensor):
        into = isinstance(args[0], CudaTensor)
        if not into or args[1].dim():  # a number goes with the call
            _note_copy(into, args[1], bool(args[2]) if len(args) > 2 else False)


def _note_copy(into: bool, values: torch.Tensor, non_blocking: bool) -> None:
    note("copy to device" if into else "copy to host", f"{tuple(values.shape)} {values.dtype}".replace("torch.", ""))
    if not non_blocking:
        note("wait", "copy to device" if into else "copy to host")


def _note_indices(name: str, args: Any) -> None:
    indices = [x for x in args[1] if isinstance(x, torch.Tensor)]
    value = args[2] if len(args) > 2 else None
    # `x[mask] = number` fills under the mask without counting it.
    fills = isinstance(value, torch.Tensor) and value.dim() == 0 and len(indices) == 1
    for index in indices:
        if index.dtype in (torch.bool, torch.uint8) and not fills:
            note("wait", "index by a mask")
        if not isinstance(index, CudaTensor):
            _note_copy(True, index, non_blocking=False)

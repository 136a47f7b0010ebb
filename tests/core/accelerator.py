"""A device that is not there: its tensors are real CPU tensors behind a wrapper, and what crosses
to or from it is counted. An operation that mixes its tensors with the CPU's fails."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("lazy")


class OnAccelerator(torch.Tensor):
    """A tensor of the device; only the dispatch mode may look inside."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner):
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    def data_ptr(self):
        return self.inner.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func}: a tensor of the accelerator is used outside its mode")


class Accelerator(TorchDispatchMode):
    """Runs operations; ``uploads`` and ``downloads`` list the element counts that crossed."""

    def __init__(self):
        super().__init__()
        self.uploads, self.downloads, self.scalars = [], [], 0

    def put(self, tensor):
        """A tensor of the model, there from the beginning."""
        return OnAccelerator(tensor.detach())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors, devices = [], []
        tree_map(lambda leaf: _sort(leaf, tensors, devices), (args, kwargs))
        here = [t for t in tensors if isinstance(t, OnAccelerator)]
        there = [t for t in tensors if not isinstance(t, OnAccelerator) and t.dim() > 0]
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "equal", "is_nonzero") and here:
            self.scalars += 1
        to_accelerator = self._crosses(func, name, here, there, args, devices)
        inner = {id(t.inner): t for t in here}

        def unwrap(leaf):
            if isinstance(leaf, OnAccelerator):
                return leaf.inner
            return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

        def wrap(leaf):
            if not _is_tensor(leaf):
                return leaf
            return inner[id(leaf)] if id(leaf) in inner else OnAccelerator(leaf)

        out = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
        if id(out) not in inner and to_accelerator and there and _is_tensor(out):
            out = out.clone()  # a copy to this device never shares the CPU's memory
        return tree_map(wrap, out) if to_accelerator else out

    def _crosses(self, func, name, here, there, args, devices):
        """Note what crosses; whether the result is on the accelerator."""
        if devices and here and devices[0] != DEVICE:
            self.downloads.append(here[0].numel())
            return False
        if devices and there and devices[0] == DEVICE:
            self.uploads.append(there[0].numel())
            return True
        if here and there:
            assert name in ("copy_", "_copy_from"), f"{func} mixes devices"
            into = isinstance(args[0], OnAccelerator)
            (self.uploads if into else self.downloads).append(there[0].numel())
            return into
        return bool(here) or (bool(devices) and devices[0] == DEVICE)


def _is_tensor(leaf):
    return isinstance(leaf, torch.Tensor)


def _sort(leaf, tensors, devices):
    if _is_tensor(leaf):
        tensors.append(leaf)
    elif isinstance(leaf, torch.device):
        devices.append(leaf)

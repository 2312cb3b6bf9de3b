"""Counts what makes a program wait for its device: numbers read from tensors."""

from torch.utils._python_dispatch import TorchDispatchMode

READS = ("aten::_local_scalar_dense", "aten::is_nonzero")


class Waits(TorchDispatchMode):
    """Within its block, `count` is how often the host read a number from a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() in READS
        return func(*args, **(kwargs or {}))

"""Define the two operator schemas that torchvision's Python code expects its C++ library to have registered.

The registries carry torchvision built for CUDA torch. Next to a CPU torch its C++ library does not
load, and `import torchvision` dies with "operator torchvision::nms does not exist", because it
registers fake kernels for operators nobody defined. Image processors use none of these operators, so
their schemas are enough. Kernels stay undefined on purpose: calling one is still an error.
"""

from __future__ import annotations

_library = None


def define() -> None:
    """Define `nms` and `qnms` once per process, unless a working torchvision already did."""
    global _library
    import torch

    if _library is not None or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library = library

"""The moving average of the factors."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Follows parameters by diffusers' ``EMAModel``; does nothing for decay 0.

    Args:
        parameters: What to follow.
        decay: Share of the old average in the new one, in the long run.

    Attributes:
        is_shown: Whether the parameters are, or are becoming, their average.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        from diffusers.training_utils import EMAModel

        self._parameters, self.is_shown = parameters, False
        self._model = EMAModel(parameters, decay=decay) if decay else None

    def step(self) -> None:
        """Take in the parameters as they are."""
        if self._model is not None:
            self._model.step(self._parameters)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The parameters are their average within."""
        if self._model is None:
            yield
            return
        own = [parameter.detach().clone() for parameter in self._parameters]
        self.is_shown = True
        try:
            self._model.copy_to(self._parameters)
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._parameters, own, strict=True):
                    parameter.copy_(value)
            self.is_shown = False

    def tensors(self) -> dict[str, Tensor]:
        """What ``load`` needs."""
        if self._model is None:
            return {}
        shadows = {str(i): value for i, value in enumerate(self._model.shadow_params)}
        return {**shadows, "steps": torch.tensor(self._model.optimization_step)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from ``tensors``."""
        if self._model is None:
            return
        self._model.optimization_step = int(tensors["steps"])
        for index, shadow in enumerate(self._model.shadow_params):
            shadow.copy_(tensors[str(index)])

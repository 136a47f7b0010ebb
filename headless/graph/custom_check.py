"""VALIDATE_INPUTS: a node class's own check of its inputs, before anything runs."""

import inspect
from collections.abc import Mapping
from typing import Any

from .async_calls import AsyncCalls, call_over_lists
from .input_errors import Error, error


class CustomCheck:
    """The check of one class; an input that it names is checked by it alone.

    Attributes:
        exists: Whether the class has one that takes anything.
        checks_types: Whether it looks at the types of linked outputs too.
    """

    def __init__(self, cls: Any) -> None:  # noqa: ANN401
        self._cls = cls
        function = getattr(cls, "VALIDATE_INPUTS", None)
        signature = inspect.getfullargspec(function) if function is not None else None
        self._names = frozenset(signature.args) if signature else frozenset()
        self._takes_all = signature is not None and signature.varkw is not None
        self.exists = bool(self._names) or self._takes_all
        self.checks_types = "input_types" in self._names

    def names(self, name: str) -> bool:
        """Whether it looks at this input."""
        return self._takes_all or name in self._names

    def errors(
        self, data: Mapping[str, Any], received: Mapping[str, Any], calls: AsyncCalls
    ) -> list[Error]:
        """One error per refusal and per input that was shown, as ComfyUI.

        Args:
            data: Name to values, one per call.
            received: Name of each linked input to the type that it is given.
            calls: Where coroutines run.
        """
        shown = {name: values for name, values in data.items() if self.names(name)}
        if self.checks_types:
            shown["input_types"] = [received]
        answers = calls.results(call_over_lists(self._cls, "VALIDATE_INPUTS", shown, calls))
        return [
            error(
                "custom_validation_failed",
                "Custom validation failed for node",
                name if answer is False else f"{name} - {answer}",
                input_name=name,
            )
            for name in shown
            for answer in answers
            if answer is not True
        ]

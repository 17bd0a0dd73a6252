"""What the library raises. All are RuntimeErrors, as what torch raises for a module that it calls itself."""


class Error(RuntimeError):
    """The library can not do what it was asked to; the message says why, and what to do."""


class BudgetError(Error):
    """The model does not run in the budget that was given.

    `minimum_bytes` is the smallest `vram_budget` that would do.
    """

    def __init__(self, message: str, minimum_bytes: int) -> None:
        super().__init__(message, minimum_bytes)
        self.minimum_bytes = minimum_bytes

    def __str__(self) -> str:
        return str(self.args[0])


class ArchiveError(Error):
    """The file is not a TorchScript archive that can be run, or can not be read."""


class InputError(Error):
    """An argument is not what it must be: the message names it, what was wanted, and what there is."""


for _error in (Error, BudgetError, ArchiveError, InputError):
    _error.__module__ = "torch_offload"
del _error

"""What torch raises where a matrix has no factor."""

# torch makes this error at run time; its stubs do not name it.
from torch.linalg import LinAlgError as LinAlgError  # type: ignore[attr-defined]

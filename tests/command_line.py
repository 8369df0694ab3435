"""What a command leaves on the terminal."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def problem(self) -> str:
        """The one line that bad input must give."""
        assert self.code == 2
        assert self.out == ""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("mesaprobe: ") and "Traceback" not in self.err
        return lines[0]

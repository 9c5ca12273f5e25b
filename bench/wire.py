"""How a contestant is asked for a chat completion."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wire:
    """Path, model name and the headers that not everybody wants, as `Name: value`."""

    path: str = "/v1/chat/completions"
    model: str = "auto"
    headers: tuple[str, ...] = ()

    def header_pairs(self) -> dict[str, str]:
        """The headers as a mapping."""
        return {name: value.strip() for name, _, value in (header.partition(":") for header in self.headers)}

    def load_flags(self) -> list[str]:
        """The same for the load generator."""
        return ["-p", self.path, *(flag for header in self.headers for flag in ("-H", header))]


OPENAI = Wire()

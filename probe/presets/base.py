"""What a preset is."""

from dataclasses import dataclass

from probe import presets, registry
from probe.models.transformer import ModelConfig


@dataclass(frozen=True)
class Preset:
    """The shape of a published model and the name of the task that it was trained on."""

    name: str
    config: ModelConfig
    task: str


def find_preset(name: str) -> Preset:
    """Returns the preset of that name.

    Raises:
        InputError: No such preset.
    """
    preset: Preset = registry.choose(presets, name, "preset")
    return preset
